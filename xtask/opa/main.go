// Open Policy Agent's engine as Envoy's ext_authz by gRPC, for the tests on the cluster. It takes the command line, the policies and the
// answers of OPA's own image with that plugin (openpolicyagent/opa:…-envoy), of which there is no Go module to be had here:
//
//	run --server --set=plugins.envoy_ext_authz_grpc.addr=:9191 --set=plugins.envoy_ext_authz_grpc.path=envoy/authz/allow policy.rego
//
// A decision is a boolean, or an object with `allowed`, `headers`, `response_headers_to_add`, `request_headers_to_remove`, `body` and
// `http_status`. One that is undefined is a no; one that cannot be used is an error, which is no answer.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	kinds "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/v1/rego"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

const plugin = "--set=plugins.envoy_ext_authz_grpc."

type asked struct{ addr, path, policy string }

// read reads the command line; what it does not know it refuses.
func read(args []string) (asked, error) {
	a := asked{addr: ":9191", path: "envoy/authz/allow"}
	for _, arg := range args {
		addr, isAddr := strings.CutPrefix(arg, plugin+"addr=")
		path, isPath := strings.CutPrefix(arg, plugin+"path=")
		switch {
		case isAddr:
			a.addr = addr
		case isPath:
			a.path = path
		case arg == "run" || arg == "--server" || arg == "--set=decision_logs.console=true" || strings.HasPrefix(arg, "--addr="):
		case strings.HasPrefix(arg, "-") || a.policy != "":
			return a, fmt.Errorf("unknown argument %q", arg)
		default:
			a.policy = arg
		}
	}
	if a.policy == "" {
		return a, fmt.Errorf("no file of policies")
	}
	return a, nil
}

type server struct {
	auth.UnimplementedAuthorizationServer
	query rego.PreparedEvalQuery
}

// decision is what a policy says.
type decision struct {
	Allowed  bool              `json:"allowed"`
	Headers  map[string]string `json:"headers"`
	Response map[string]string `json:"response_headers_to_add"`
	Remove   []string          `json:"request_headers_to_remove"`
	Body     string            `json:"body"`
	Status   int32             `json:"http_status"`
}

// input is the question as policies see it.
func input(request *auth.CheckRequest) (map[string]any, error) {
	text, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	var question map[string]any
	if err := json.Unmarshal(text, &question); err != nil {
		return nil, err
	}
	path, query, _ := strings.Cut(request.GetAttributes().GetRequest().GetHttp().GetPath(), "?")
	parts := []any{}
	for _, part := range strings.Split(strings.TrimPrefix(path, "/"), "/") {
		parts = append(parts, part)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	parameters := map[string]any{}
	for name, all := range values {
		parameters[name] = all
	}
	question["parsed_path"], question["parsed_query"] = parts, parameters
	return question, nil
}

func (s *server) decide(ctx context.Context, request *auth.CheckRequest) (decision, error) {
	question, err := input(request)
	if err != nil {
		return decision{}, err
	}
	results, err := s.query.Eval(ctx, rego.EvalInput(question))
	if err != nil || len(results) == 0 {
		return decision{}, err
	}
	switch value := results[0].Expressions[0].Value.(type) {
	case bool:
		return decision{Allowed: value}, nil
	case map[string]any:
		text, err := json.Marshal(value)
		if err != nil {
			return decision{}, err
		}
		var said decision
		err = json.Unmarshal(text, &said)
		return said, err
	default:
		return decision{}, fmt.Errorf("a decision of type %T", value)
	}
}

func options(headers map[string]string) (all []*core.HeaderValueOption) {
	for name, value := range headers {
		all = append(all, &core.HeaderValueOption{Header: &core.HeaderValue{Key: name, Value: value}})
	}
	return all
}

// Check answers a proxy.
func (s *server) Check(ctx context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	said, err := s.decide(ctx, request)
	http := request.GetAttributes().GetRequest().GetHttp()
	log.Printf("decision path=%q allowed=%t error=%v", http.GetPath(), said.Allowed, err)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if said.Allowed {
		return &auth.CheckResponse{
			Status: &rpc.Status{Code: int32(codes.OK)},
			HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
				Headers: options(said.Headers), HeadersToRemove: said.Remove, ResponseHeadersToAdd: options(said.Response),
			}},
		}, nil
	}
	code := said.Status
	if code == 0 {
		code = 403
	}
	return &auth.CheckResponse{
		Status: &rpc.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status: &kinds.HttpStatus{Code: kinds.StatusCode(code)}, Headers: options(said.Headers), Body: said.Body,
		}},
	}, nil
}

func run() error {
	a, err := read(os.Args[1:])
	if err != nil {
		return err
	}
	name := "data." + strings.ReplaceAll(a.path, "/", ".")
	query, err := rego.New(rego.Query(name), rego.Load([]string{a.policy}, nil)).PrepareForEval(context.Background())
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", a.addr)
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer()
	auth.RegisterAuthorizationServer(grpcServer, &server{query: query})
	log.Printf("serving %s of %s on %s", name, a.policy, listener.Addr())
	return grpcServer.Serve(listener)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "opa:", err)
		os.Exit(1)
	}
}
