package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Files in a Server's directory.
const (
	certFile   = "apiserver.crt" // made by kube-apiserver, and signed by itself
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return os.WriteFile(s.file(keyFile), text, 0o600)
}

// Kubeconfig writes a kubeconfig file with the rights of a kube-proxy for the API
// server behind a port of its address, and returns the file's path.
func (s *Server) Kubeconfig(port uint16) (string, error) {
	const name = "lab"
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: s.url(port), CertificateAuthority: certFile}
	config.AuthInfos[name] = &api.AuthInfo{Token: proxyToken}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	path := s.file(fmt.Sprintf("kubeconfig-%d", port))
	return path, clientcmd.WriteToFile(*config, path)
}
