// A container registry for the tests of a release (the one of the distribution project), and what fills it from an OCI image
// layout (by oras).
//
//	registry serve FOLDER ADDRESS      serves what is in the folder, by HTTP
//	registry push LAYOUT ADDRESS/HUB   copies every image and chart of the layout, each under its own name
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
)

func main() {
	err := fmt.Errorf("usage: registry serve FOLDER ADDRESS | registry push LAYOUT ADDRESS/HUB")
	if len(os.Args) == 4 {
		switch os.Args[1] {
		case "serve":
			err = serve(os.Args[2], os.Args[3])
		case "push":
			err = push(os.Args[2], os.Args[3])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func serve(folder, address string) error {
	config := &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"filesystem": configuration.Parameters{"rootdirectory": folder},
		},
	}
	config.Log.Level = "warn"
	config.HTTP.Addr = address
	// Signs the state of uploads; several processes share the folder, one of them is written to.
	config.HTTP.Secret = "of-the-tests"
	return http.ListenAndServe(address, handlers.NewApp(context.Background(), config))
}

// Names in the layout are NAME:TAG.
func push(layout, hub string) error {
	ctx := context.Background()
	source, err := oci.NewFromTar(ctx, layout)
	if err != nil {
		return fmt.Errorf("%s is no OCI image layout in a tar: %w", layout, err)
	}
	return source.Tags(ctx, "", func(names []string) error {
		for _, reference := range names {
			name, tag, found := strings.Cut(reference, ":")
			if !found {
				return fmt.Errorf("%s: %q is not NAME:TAG", layout, reference)
			}
			target, err := remote.NewRepository(hub + "/" + name)
			if err != nil {
				return err
			}
			target.PlainHTTP = true
			pushed, err := oras.Copy(ctx, source, reference, target, tag, oras.DefaultCopyOptions)
			if err != nil {
				return fmt.Errorf("%s/%s: %w", hub, reference, err)
			}
			fmt.Printf("%s/%s@%s\n", hub, reference, pushed.Digest)
		}
		return nil
	})
}
