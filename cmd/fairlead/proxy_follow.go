package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"
)

// lookAtConfig is how often the file is looked at when nothing is heard of it: it
// may be a link to where nobody watches.
const lookAtConfig = time.Minute

// follow runs the proxy as its file says, and anew each time that the file says
// something else. A new run finds the kernel programmed and changes what differs;
// nothing is lost in between. A file that has become wrong is logged, and what it
// said before counts.
func (f proxyFlags) follow(cmd *cobra.Command, e env, log *slog.Logger) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.config, err)
	}
	defer func() { _ = watcher.Close() }()
	// The directory: an editor, and a ConfigMap, puts another file in the place.
	if err := watcher.Add(filepath.Dir(f.config)); err != nil {
		return usageError{fmt.Errorf("--config: watch %s: %w", f.config, err)}
	}
	now, err := readKubeProxy(f.config)
	if err != nil {
		return err
	}
	for {
		f.adopt(now)
		f.notes = append(unusedFlags(cmd), now.unused()...)
		for _, name := range overruled(cmd) {
			f.notes = append(f.notes, setting{name, "--config says it"})
		}
		ctx, stop := context.WithCancel(cmd.Context())
		next := make(chan kubeProxy, 1)
		go func() {
			if c, ok := f.changed(ctx, e, watcher, log); ok {
				next <- c
			}
			stop()
		}()
		err := f.run(ctx, e, log)
		stop()
		select {
		case now = <-next:
		default:
			return err
		}
		if err != nil || cmd.Context().Err() != nil {
			return err
		}
		log.Info("the configuration has changed: the proxy goes on as it says now", "file", f.config)
	}
}

// adopt makes what the file says what the flags say.
func (f *proxyFlags) adopt(c kubeProxy) {
	f.kube = c
	if f.hostname == "" && c.HostnameOverride != "" {
		f.nodeName = c.HostnameOverride
	}
	if f.manifests == "" {
		f.kubeconfig = c.ClientConnection.Kubeconfig
	}
	f.masqueradeBit = uint8(*c.IPTables.MasqueradeBit)
}

// changed waits until the file says something else that is right.
func (f proxyFlags) changed(ctx context.Context, e env, watcher *fsnotify.Watcher, log *slog.Logger) (kubeProxy, bool) {
	look := time.NewTicker(lookAtConfig)
	defer look.Stop()
	for seen := ""; ; {
		text, err := os.ReadFile(f.config)
		if err == nil && string(text) != seen { // else it is being replaced
			seen = string(text)
			if c, ok := f.differs(text, e, log); ok {
				return c, true
			}
		}
		select {
		case <-ctx.Done():
			return kubeProxy{}, false
		case <-watcher.Events:
		case <-look.C:
		}
	}
}

// differs says what the text of the file says, if that is right and another thing
// than f.
func (f proxyFlags) differs(text []byte, e env, log *slog.Logger) (kubeProxy, bool) {
	c, err := parseKubeProxy(f.config, text)
	if err == nil {
		next := f
		next.adopt(c)
		_, err = next.settings(e)
	}
	if err != nil {
		log.Error("the configuration has become wrong: what it said before counts", "error", err)
		return c, false
	}
	return c, !reflect.DeepEqual(c, f.kube)
}
