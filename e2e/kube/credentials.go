package kube

import (
	"crypto"
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
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Files in a Server's directory.
const (
	caFile     = "ca.crt"
	certFile   = "apiserver.crt" // signed by the key of the former
	certKey    = "apiserver.key"
	keyFile    = "service-account.key"
	tokensFile = "tokens.csv"
)

// The bearers of adminToken may do everything, those of proxyToken what Kubernetes
// itself lets a kube-proxy do: user system:kube-proxy has the cluster role
// system:node-proxier.
const (
	adminToken = "admin"
	proxyToken = "proxy"
	tokens     = adminToken + `,admin,admin,system:masters
` + proxyToken + `,system:kube-proxy,proxy
`
)

// writeCredentials writes what kube-apiserver does not make itself.
func (s *Server) writeCredentials() error {
	if err := os.WriteFile(s.file(tokensFile), []byte(tokens), 0o600); err != nil {
		return err
	}
	if _, err := s.newKey(keyFile); err != nil {
		return err
	}
	return s.Certify(time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
}

// Certify gives the API server a certificate for a time, which it shows from its
// next start on. A client whose clock is not within that time does not trust it.
func (s *Server) Certify(from, until time.Time) error {
	if s.ca == nil {
		if err := s.makeCA(); err != nil {
			return err
		}
	}
	key, err := s.newKey(certKey)
	if err != nil {
		return err
	}
	return s.sign(certFile, &x509.Certificate{
		SerialNumber: big.NewInt(from.UnixNano()),
		Subject:      pkix.Name{CommonName: "kube-apiserver"},
		NotBefore:    from, NotAfter: until,
		IPAddresses: []net.IP{s.addr.AsSlice()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public())
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (s *Server) makeCA() error {
	key, err := s.newKey("ca.key")
	if err != nil {
		return err
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "lab"},
		NotBefore:    time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	s.ca = &authority{cert, key}
	return s.sign(caFile, cert, key.Public())
}

// newKey makes a private key and writes it to a file.
func (s *Server) newKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, s.writePEM(file, "EC PRIVATE KEY", der)
}

func (s *Server) sign(file string, cert *x509.Certificate, key crypto.PublicKey) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, s.ca.cert, key, s.ca.key)
	if err != nil {
		return err
	}
	return s.writePEM(file, "CERTIFICATE", der)
}

func (s *Server) writePEM(file, kind string, der []byte) error {
	return os.WriteFile(s.file(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// Kubeconfig writes a kubeconfig file with the rights of a kube-proxy for the API
// server behind a port of its address, and returns the file's path.
func (s *Server) Kubeconfig(port uint16) (string, error) {
	const name = "lab"
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: s.url(port), CertificateAuthority: caFile}
	config.AuthInfos[name] = &api.AuthInfo{Token: proxyToken}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	path := s.file(fmt.Sprintf("kubeconfig-%d", port))
	return path, clientcmd.WriteToFile(*config, path)
}
