package watch

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// file is what is known of one file of a directory.
type file struct {
	content                    // as of the last reading that counts
	version version            // that was read
	decoded map[digest]content // its documents, by their text
	// closed: a writer is done with the file, and it has not been read since.
	closed bool
	// stale is since when the file on disk is known to be another one than
	// content is of; zero if it is not.
	stale time.Time
}

// doubted returns since when there is doubt about the file, which was modified at
// the time given.
func (f *file) doubted(modified time.Time) time.Time {
	if !f.stale.IsZero() && f.stale.Before(modified) {
		return f.stale
	}
	return modified
}

type digest [sha256.Size]byte

// version tells apart what a file contains from what it contained. It may fail
// to, if the file was written twice within one tick of the file system's clock.
type version struct {
	device, inode     uint64
	size              int64
	modified, changed int64 // mtime and ctime in ns
}

func versionOf(info fs.FileInfo) version {
	stat := info.Sys().(*syscall.Stat_t)
	return version{
		device:   stat.Dev,
		inode:    stat.Ino,
		size:     stat.Size,
		modified: stat.Mtim.Nano(),
		changed:  stat.Ctim.Nano(),
	}
}

func (v version) modTime() time.Time { return time.Unix(0, v.modified) }

var (
	errNotRegular = errors.New("not a regular file")
	errTooLarge   = errors.New("larger than 256 MiB")
	errChanging   = errors.New("changed while it was read")
)

// maxSize is far beyond what all Services of a cluster take; a file that is
// larger, by mistake, must not use up the memory.
const maxSize = 256 << 20

// readFile returns the text of a file and its version. With errChanging it
// returns a text that is not to be trusted.
func readFile(path string) ([]byte, version, error) {
	// O_NONBLOCK: to open a FIFO must not mean to wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, version{}, err
	}
	defer func() { _ = f.Close() }()

	before, err := f.Stat()
	if err != nil {
		return nil, version{}, err
	}
	if !before.Mode().IsRegular() {
		return nil, version{}, errNotRegular
	}
	if before.Size() > maxSize {
		return nil, version{}, errTooLarge
	}
	var text bytes.Buffer
	text.Grow(int(before.Size()) + bytes.MinRead)
	if _, err := text.ReadFrom(f); err != nil {
		return nil, version{}, err
	}
	after, err := f.Stat()
	if err == nil && versionOf(before) != versionOf(after) {
		err = errChanging
	}
	return text.Bytes(), versionOf(before), err
}

// decodeFile decodes the documents of a file that are not among those known, and
// returns what all of them contain, and them. So a change in a file of thousands
// of documents costs the decoding of one.
func decodeFile(path string, text []byte, known map[digest]content) (content, map[digest]content) {
	docs := split(text)
	digests := make([]digest, len(docs))
	contents := make([]content, len(docs))
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for i, doc := range docs {
		digests[i] = sha256.Sum256(doc.text)
		c, ok := known[digests[i]]
		if ok {
			contents[i] = c
			continue
		}
		work.Go(func() error {
			contents[i] = decode(doc.text)
			return nil
		})
	}
	_ = work.Wait() // decode has no errors, only problems

	var all content
	decoded := make(map[digest]content, len(docs))
	for i, doc := range docs {
		decoded[digests[i]] = contents[i]
		all.add(contents[i], Place{File: path, Line: doc.line})
	}
	return all, decoded
}

// add adds what a document contains whose first line is at place.
func (c *content) add(doc content, place Place) {
	for _, o := range doc.objects {
		o.line += place.Line - 1
		c.objects = append(c.objects, o)
	}
	for _, p := range doc.problems {
		p.Place = Place{File: place.File, Line: p.Place.Line + place.Line - 1}
		c.problems = append(c.problems, p)
	}
}

// worseThan says whether c lacks an object that old has, or has a problem that
// old has not: both are what a file looks like that is half written.
func (c content) worseThan(old content) bool {
	objects := make(map[Object]bool, len(c.objects))
	for _, o := range c.objects {
		objects[o.Object] = true
	}
	problems := make(map[Problem]bool, len(old.problems))
	for _, p := range old.problems {
		problems[p.withoutLines()] = true
	}
	return slices.ContainsFunc(old.objects, func(o object) bool { return !objects[o.Object] }) ||
		slices.ContainsFunc(c.problems, func(p Problem) bool { return !problems[p.withoutLines()] })
}

// unreadable is the problem of a file, or a directory, that cannot be read.
func unreadable(path string, err error, consequence string) Problem {
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err // path is named already
	}
	return Problem{Place: Place{File: path}, Message: fmt.Sprintf("cannot be read: %v; %s", err, consequence)}
}
