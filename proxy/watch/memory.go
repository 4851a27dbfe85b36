package watch

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/proxy/service"
)

// memory is the file in which a Kube keeps what it knows, for the next one: a node
// that boots while the API server is away has nothing in its kernel, and nobody
// else to ask.
type memory struct {
	path  string
	of    origin
	dirty bool      // the file does not have what was told last
	saved time.Time // when what it has was known; zero: it has nothing
	err   error     // of the last time that it was written
}

// origin is whose state a file has.
type origin struct {
	Node      string `json:"node"`
	APIServer string `json:"apiServer"`
}

// The first line of the file, the following ones, one for each object, and the
// last one.
type (
	memoryHead struct {
		Schema string `json:"schema"`
		origin
		Saved time.Time `json:"saved"`
	}
	memoryObject struct {
		Kind      string          `json:"kind"`
		Namespace string          `json:"namespace,omitempty"`
		Name      string          `json:"name"`
		UID       types.UID       `json:"uid,omitempty"`
		Value     json.RawMessage `json:"value"`
	}
)

const memorySchema = "fairlead-cluster/1"

const (
	// memoryPatience is for how long a source waits for the API server before it
	// tells what it remembers.
	memoryPatience = 5 * time.Second
	// memoryInterval is between two times that the file is written.
	memoryInterval = time.Minute
)

// Remember has the source keep what it knows in a file, which is written a minute
// after a change at the latest and by Close. What is in the file already is told
// when the API server has not answered for five seconds, as what there is until it
// answers; Stale says so. Recall says of when it is; the zero time says that the
// file has nothing of this node and API server.
//
// It is to be called before Next. An error says that the file cannot be read; it
// is written all the same.
func (k *Kube) Remember(path string) (recall time.Time, err error) {
	of := origin{Node: k.node}
	if k.config != nil {
		of.APIServer = k.config.Host
	}
	head, objects, err := readMemory(path, of)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.memory = &memory{path: path, of: of, saved: head.Saved}
	for o, f := range objects {
		if c := k.contacts[o.Kind]; c != nil && !c.listed {
			k.noteLocked(o, f)
		}
	}
	k.remembering()
	return head.Saved, err
}

// remembering saves now and then, until the source is closed, and then.
func (k *Kube) remembering() {
	if k.ctx == nil {
		return // nothing is watched
	}
	k.running.Go(func() {
		every := time.NewTicker(memoryInterval)
		defer every.Stop()
		for {
			select {
			case <-k.ctx.Done():
				k.save()
				return
			case <-every.C:
				k.save()
			}
		}
	})
}

// MemoryError is why the file of Remember could not be written the last time, nil
// if it could.
func (k *Kube) MemoryError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.memory == nil {
		return nil
	}
	return k.memory.err
}

// Recalled is of when what is told is, as long as that is, in part, what was
// remembered; else it is zero.
func (k *Kube) Recalled() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.memory == nil || k.told.IsZero() || k.allListed() {
		return time.Time{}
	}
	return k.memory.saved
}

// save writes the file if it lacks something.
func (k *Kube) save() {
	m, records, needed := k.toSave()
	if !needed {
		return
	}
	err := m.write(records)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.memory.err = err
	k.memory.dirty = k.memory.dirty || err != nil
}

// toSave is what the file is to have, if it does not. What is told before the API
// server has answered is the file's own.
func (k *Kube) toSave() (m memory, records map[Object]finding, needed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.memory.dirty || !k.allListed() {
		return memory{}, nil, false
	}
	records = make(map[Object]finding, len(k.records))
	for o, r := range k.records {
		if r.now.value != nil {
			records[o] = r.now
		}
	}
	k.memory.dirty = false
	return *k.memory, records, true
}

// write replaces the file in one step.
func (m memory) write(records map[Object]finding) error {
	if err := m.replace(records); err != nil {
		return fmt.Errorf("keep the cluster's state: %w", err)
	}
	return nil
}

func (m memory) replace(records map[Object]finding) error {
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return err
	}
	temporary := m.path + ".new" // what a killed process has left of it is written over
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(file, 64<<10)
	err = m.encode(out, records)
	if err := errors.Join(err, out.Flush(), file.Sync(), file.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return os.Rename(temporary, m.path)
}

func (m memory) encode(out io.Writer, records map[Object]finding) error {
	lines := json.NewEncoder(out)
	if err := lines.Encode(memoryHead{memorySchema, m.of, time.Now().UTC()}); err != nil {
		return err
	}
	for o, f := range records {
		value, err := json.Marshal(f.value)
		if err != nil {
			return err
		}
		line := memoryObject{Kind: o.Kind, Namespace: o.Name.Namespace, Name: o.Name.Name, UID: f.uid, Value: value}
		if err := lines.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

// readMemory reads what a file has of a cluster: nothing, if there is no file or it
// is of another one.
func readMemory(path string, of origin) (head memoryHead, objects map[Object]finding, err error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return memoryHead{}, nil, nil
	}
	if err != nil {
		return memoryHead{}, nil, fmt.Errorf("read the cluster's last state: %w", err)
	}
	defer func() { _ = file.Close() }()
	lines := json.NewDecoder(bufio.NewReaderSize(file, 64<<10))
	if err := lines.Decode(&head); err != nil || head.Schema != memorySchema {
		return memoryHead{}, nil, fmt.Errorf("read the cluster's last state: %s: schema %q: allowed is %s; it is written anew", path, head.Schema, memorySchema)
	}
	if head.origin != of {
		return memoryHead{}, nil, nil
	}
	objects = map[Object]finding{}
	for {
		var line memoryObject
		err := lines.Decode(&line)
		if errors.Is(err, io.EOF) {
			return head, objects, nil
		}
		if err == nil {
			err = line.into(objects)
		}
		if err != nil {
			return memoryHead{}, nil, fmt.Errorf("read the cluster's last state: %s: %w; it is written anew", path, err)
		}
	}
}

func (l memoryObject) into(objects map[Object]finding) error {
	value, err := l.decode()
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", l.Kind, l.Namespace, l.Name, err)
	}
	o := Object{Kind: l.Kind, Name: service.Name{Namespace: l.Namespace, Name: l.Name}}
	objects[o] = finding{uid: l.UID, value: value}
	return nil
}

func (l memoryObject) decode() (any, error) {
	switch l.Kind {
	case kindService:
		return remembered[service.Service](l.Value)
	case kindSlice:
		return remembered[service.Slice](l.Value)
	case kindNode:
		return remembered[service.Node](l.Value)
	case kindServiceCIDR:
		return remembered[ServiceCIDR](l.Value)
	}
	return nil, errors.New("this kind is not known")
}

func remembered[T any](text []byte) (*T, error) {
	value := new(T)
	return value, json.Unmarshal(text, value)
}
