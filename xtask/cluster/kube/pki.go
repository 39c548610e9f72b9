package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// pki: a directory of certificates, keys and kubeconfigs of one cluster.
type pki struct {
	dir, server string
	ca          *x509.Certificate
	key         *ecdsa.PrivateKey
}

// writePKI: arguments DIR API-ADDRESS SERVICE-ADDRESS [NODE=ADDRESS ...]
func writePKI(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: kube pki DIR API-ADDRESS SERVICE-ADDRESS [NODE=ADDRESS ...]")
	}
	p := &pki{dir: args[0], server: args[1]}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if err := p.authority(); err != nil {
		return err
	}
	sa, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := p.writeKey("sa", sa); err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(&sa.PublicKey)
	if err != nil {
		return err
	}
	if err := p.write("sa.pub", "PUBLIC KEY", pub); err != nil {
		return err
	}
	local := []string{"127.0.0.1", p.server, args[2], "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local"}
	if err := p.leaf("apiserver", "", "kube-apiserver", local); err != nil {
		return err
	}
	for _, c := range [][3]string{
		{"apiserver-kubelet-client", "system:masters", "apiserver-kubelet-client"},
		{"front-proxy-client", "", "front-proxy-client"},
		{"admin", "system:masters", "admin"},
		{"kube-controller-manager", "", "system:kube-controller-manager"},
		{"kube-scheduler", "", "system:kube-scheduler"},
		{"kube-proxy", "", "system:kube-proxy"},
	} {
		if err := p.leaf(c[0], c[1], c[2], nil); err != nil {
			return err
		}
	}
	for _, n := range args[3:] {
		name, addr, _ := strings.Cut(n, "=")
		if err := p.leaf("kubelet-"+name, "system:nodes", "system:node:"+name, nil); err != nil {
			return err
		}
		if err := p.leaf("kubelet-"+name+"-server", "system:nodes", "system:node:"+name, []string{name, addr, "127.0.0.1"}); err != nil {
			return err
		}
	}
	return nil
}

func (p *pki) authority() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	p.key = key
	if err := p.writeKey("ca", key); err != nil {
		return err
	}
	return p.write("ca.crt", "CERTIFICATE", der)
}

// leaf: with names it serves, without it is a client and gets a kubeconfig.
func (p *pki) leaf(file, group, name string, names []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
	if group != "" {
		t.Subject.Organization = []string{group}
	}
	if len(names) > 0 {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, n := range names {
			if ip := net.ParseIP(n); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else {
				t.DNSNames = append(t.DNSNames, n)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, p.ca, &key.PublicKey, p.key)
	if err != nil {
		return err
	}
	if err := p.writeKey(file, key); err != nil {
		return err
	}
	if err := p.write(file+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	if len(names) > 0 {
		return nil
	}
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: karst, cluster: {server: "https://%s:6443", certificate-authority: %s/ca.crt}}]
users: [{name: user, user: {client-certificate: %s/%s.crt, client-key: %s/%s.key}}]
contexts: [{name: karst, context: {cluster: karst, user: user}}]
current-context: karst
`, p.server, p.dir, p.dir, file, p.dir, file)
	return os.WriteFile(filepath.Join(p.dir, file+".kubeconfig"), []byte(config), 0o600)
}

func (p *pki) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return p.write(name+".key", "EC PRIVATE KEY", der)
}

func (p *pki) write(name, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(p.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
