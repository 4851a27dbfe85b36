package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/watch"
)

// sourceFlags say where the objects of the cluster come from.
type sourceFlags struct {
	kubeconfig string
	manifests  string
	master     string // URL of the API server, in place of the kubeconfig's; "" is that
	stateFile  string // "": nothing is kept
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file for the API server to watch (default: that of the cluster whose pod this is)")
	cmd.Flags().StringVar(&f.manifests, "manifests", "", "directory of YAML files with the objects, watched in place of an API server")
	cmd.Flags().StringVar(&f.stateFile, "state-file", "", "file that keeps what the API server said last, which counts while it is away at the start; \"\" for none")
}

// source is a proxy.Source that is to be closed.
type source interface {
	proxy.Source
	Close() error
}

// open opens the source that the flags name, an API server by watchKube. The
// attribute says where its objects come from.
func (f sourceFlags) open(nodeName string, watchKube func(*rest.Config, string) (*watch.Kube, error), log *slog.Logger) (source, slog.Attr, error) {
	if f.kubeconfig != "" && f.manifests != "" {
		return nil, slog.Attr{}, usagef("--kubeconfig and --manifests: only one of them can be where the objects come from")
	}
	if f.manifests != "" {
		dir, err := watch.NewDir(f.manifests)
		if err != nil {
			return nil, slog.Attr{}, usageError{fmt.Errorf("--manifests: %w", err)}
		}
		return dir, slog.String("manifests", f.manifests), nil
	}
	config, err := f.restConfig()
	if err != nil {
		return nil, slog.Attr{}, err
	}
	if f.master != "" {
		config.Host = f.master
	}
	config.UserAgent = "fairlead/" + version
	kube, err := watchKube(config, nodeName)
	if err != nil {
		return nil, slog.Attr{}, fmt.Errorf("watch %s: %w", config.Host, err)
	}
	f.remember(kube, log)
	return kube, slog.String("api_server", config.Host), nil
}

// sourceName is what people call a source.
func sourceName(from slog.Attr) string {
	return strings.ReplaceAll(from.Key, "_", " ") + " " + from.Value.String()
}

// remember has the source keep its state, if that is wanted. A file that cannot be
// read is written anew.
func (f sourceFlags) remember(kube *watch.Kube, log *slog.Logger) {
	if f.stateFile == "" {
		return
	}
	recall, err := kube.Remember(f.stateFile)
	switch {
	case err != nil:
		log.Warn("nothing is remembered of the cluster", "flag", "--state-file", "error", err)
	case !recall.IsZero():
		log.Info("the cluster is remembered, in case that the API server is away", "state_file", f.stateFile, "of", recall)
	}
}

// restConfig is how to reach the API server.
func (f sourceFlags) restConfig() (*rest.Config, error) {
	if f.kubeconfig == "" && f.master != "" {
		return &rest.Config{}, nil
	}
	if f.kubeconfig == "" {
		config, err := rest.InClusterConfig()
		switch {
		case errors.Is(err, rest.ErrNotInCluster):
			return nil, usagef("--kubeconfig or --manifests: missing: where the objects of the cluster come from (only in a pod of the cluster is that known)")
		case err != nil:
			return nil, fmt.Errorf("read the pod's service account: %w", err)
		}
		return config, nil
	}
	file, err := clientcmd.LoadFromFile(f.kubeconfig)
	if err != nil {
		return nil, kubeconfigError(f.kubeconfig, err)
	}
	if err := clientcmd.ResolveLocalPaths(file); err != nil {
		return nil, kubeconfigError(f.kubeconfig, err)
	}
	if name := file.CurrentContext; name != "" && file.Contexts[name] == nil {
		return nil, kubeconfigError(f.kubeconfig, fmt.Errorf("current-context %q: there is no such context", name))
	}
	config, err := clientcmd.NewDefaultClientConfig(*file, &clientcmd.ConfigOverrides{}).ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, kubeconfigError(f.kubeconfig, errors.New("it names no API server"))
	case err != nil:
		return nil, kubeconfigError(f.kubeconfig, err)
	}
	return config, nil
}

// kubeconfigError makes one line of what is wrong with a kubeconfig, and names
// the file once.
func kubeconfigError(path string, err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	for _, said := range []string{"open " + path + ": ", "invalid configuration: "} {
		text = strings.TrimPrefix(text, said)
	}
	return usagef("--kubeconfig %s: %s", path, text)
}

// logStale logs when the source begins and when it ceases to lag behind the API
// server.
func logStale(ctx context.Context, kube *watch.Kube, log *slog.Logger) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	said, recalled, unsaved := false, false, false
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-look.C:
			said = report(kube.Stale(now), said, staleNews, log)
			if of := kube.Recalled(); !of.IsZero() && !recalled {
				log.Warn("the API server has not answered since the start; what counts is what it said before", "of", of)
				recalled = true
			}
			unsaved = report(kube.MemoryError(), unsaved, unsavedNews, log, "flag", "--state-file")
		}
	}
}

// staleNews, unsavedNews: what is logged when trouble begins, and when it ends.
var (
	staleNews   = [2]string{"the API server is not followed; what was known before counts", "the API server is followed again"}
	unsavedNews = [2]string{"what the API server says is not kept for the next start", "what the API server says is kept again"}
)

// report logs err, or that there is none any more, if the opposite was said last, and
// returns whether it is now said that there is one.
func report(err error, said bool, news [2]string, log *slog.Logger, attrs ...any) bool {
	switch {
	case err != nil && !said:
		log.Warn(news[0], append(attrs, "error", err)...)
	case err == nil && said:
		log.Info(news[1])
	}
	return err != nil
}
