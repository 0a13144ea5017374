package kube

import (
	"encoding/json"
	"fmt"

	"sigs.k8s.io/yaml"
)

// kubeconfig is the part of Kubernetes' client configuration (v1 Config) that a certificate's holder needs. Keys and
// certificates are inside, so that the file can be copied.
type kubeconfig struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	Clusters       []namedCluster `json:"clusters"`
	Users          []namedUser    `json:"users"`
	Contexts       []namedContext `json:"contexts"`
	CurrentContext string         `json:"current-context"`
}

type namedCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server string `json:"server"`
		CA     []byte `json:"certificate-authority-data"`
	} `json:"cluster"`
}

type namedUser struct {
	Name string `json:"name"`
	User struct {
		Cert []byte `json:"client-certificate-data"`
		Key  []byte `json:"client-key-data"`
	} `json:"user"`
}

type namedContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

// kubeconfig is the client configuration of a new certificate for s.
func (a *authority) kubeconfig(cluster, server string, s subject) ([]byte, error) {
	pair, err := a.issue(s)
	if err != nil {
		return nil, err
	}
	c := namedCluster{Name: cluster}
	c.Cluster.Server, c.Cluster.CA = server, a.certPEM
	u := namedUser{Name: s.user}
	u.User.Cert, u.User.Key = pair.cert, pair.key
	x := namedContext{Name: cluster}
	x.Context.Cluster, x.Context.User = cluster, s.user
	raw, err := json.Marshal(kubeconfig{
		APIVersion: "v1", Kind: "Config", CurrentContext: cluster,
		Clusters: []namedCluster{c}, Users: []namedUser{u}, Contexts: []namedContext{x},
	})
	if err != nil {
		return nil, fmt.Errorf("encode the kubeconfig of %s: %w", s.user, err)
	}
	out, err := yaml.JSONToYAML(raw)
	if err != nil {
		return nil, fmt.Errorf("encode the kubeconfig of %s: %w", s.user, err)
	}
	return out, nil
}
