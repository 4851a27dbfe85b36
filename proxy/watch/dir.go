package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a source that reads the files *.yaml, *.yml and *.json of a directory,
// not of those below it, and not those whose name begins with a dot.
//
// Events of the directory only say when to look. What to read follows from a
// look at every file's version, so that no order of events, nor their loss, nor
// the exchange of the directory itself leads to a wrong state; and a look is
// taken now and then with no event at all.
//
// Half-written files. A file is read at once when its writer closes it or moves
// it into place, otherwise when it has been left alone for 50 ms. A reading that
// lacks an object which the file had, or has a problem which it had not, counts
// only if that is still so 50 ms later: the writer may have closed the file to
// open it again. A file that is gone gets 50 ms to come back, as some editors
// have it. Until then what was read before counts.
//
// What cannot be read says nothing. If the directory or a file of it becomes
// unreadable, that is a problem, and what was read before stays. The directory's
// removal is of this kind, that of a file is not.
//
// An object that is there twice is taken from the file whose name sorts first,
// and in a file from where it stands first.
//
// A Dir is for one goroutine.
type Dir struct {
	path     string
	settle   time.Duration // for how long a file must be left alone
	patience time.Duration // after which a file counts though it is not left alone
	rescan   time.Duration // between two looks without an event

	notify *inotify
	self   int            // watch descriptor of the directory
	links  map[int]string // watch descriptor of a file → the symbolic link that leads to it

	files   map[string]*file // name → file
	trouble []Problem        // with the directory itself
	again   time.Time        // when to take the next look
	waiting bool             // for files that are not left alone
	changed bool             // something, since told was made
	told    *state           // nil before the first News
}

// dirEvents are the events of a directory, or of a file that a link leads to,
// after which a look is worth while.
const dirEvents = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB |
	unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF

// NewDir opens the directory at path as a source. It must be readable.
func NewDir(path string) (*Dir, error) {
	notify, err := openInotify()
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	d := &Dir{
		path:     path,
		settle:   50 * time.Millisecond,
		patience: 5 * time.Second,
		rescan:   2 * time.Second,
		notify:   notify,
		files:    map[string]*file{},
	}
	if _, err := d.list(); err != nil {
		_ = notify.close()
		return nil, err
	}
	return d, nil
}

// Close ends the source.
func (d *Dir) Close() error { return d.notify.close() }

// Next waits until the objects or the problems of the directory differ from what
// was told before, and returns the difference.
func (d *Dir) Next(ctx context.Context) (News, error) {
	for {
		if err := ctx.Err(); err != nil {
			return News{}, err
		}
		if err := d.look(time.Now()); err != nil {
			return News{}, err
		}
		if news, ok := d.news(); ok {
			return news, nil
		}
		events, err := d.notify.wait(ctx, d.again)
		if err != nil {
			return News{}, fmt.Errorf("watch directory %s: %w", d.path, err)
		}
		d.note(events)
	}
}

// note keeps of events what a later look could not see.
func (d *Dir) note(events []event) {
	for _, e := range events {
		name := e.name
		if e.watch != d.self {
			name = d.links[e.watch]
		}
		switch {
		case e.mask&unix.IN_Q_OVERFLOW != 0:
			for _, f := range d.files {
				f.version = version{}
			}
		case !isManifest(name):
		case e.mask&(unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO) != 0:
			d.file(name).closed = true
		case e.mask&unix.IN_MODIFY != 0:
			d.file(name).closed = false
		}
	}
}

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// file returns the file of that name, an empty one if it is not known yet.
func (d *Dir) file(name string) *file {
	f, ok := d.files[name]
	if !ok {
		f = &file{}
		d.files[name] = f
	}
	return f
}

// look compares the directory with what is known of it and reads what differs.
func (d *Dir) look(now time.Time) error {
	d.again, d.waiting = now.Add(d.rescan), false
	entries, err := d.list()
	if err != nil {
		return d.lost(err, now)
	}
	d.changed = d.changed || d.trouble != nil
	d.trouble = nil

	present := make(map[string]bool, len(entries))
	links := map[int]string{}
	for _, entry := range entries {
		name := entry.Name()
		if !isManifest(name) {
			continue
		}
		present[name] = true
		if entry.Type()&fs.ModeSymlink != 0 {
			d.follow(name, links)
		}
		d.lookAt(name, now)
	}
	d.unfollow(links)
	for name, f := range d.files {
		if !present[name] {
			d.missing(name, f, now)
		}
	}
	return nil
}

// list watches the directory, which may have been exchanged since the last time,
// and returns its entries.
func (d *Dir) list() ([]os.DirEntry, error) {
	wd, err := d.notify.watch(d.path, dirEvents|unix.IN_ONLYDIR)
	if err != nil {
		return nil, err
	}
	if wd != d.self {
		d.notify.unwatch(d.self)
		d.self = wd
	}
	return os.ReadDir(d.path)
}

// lost handles a directory that cannot be read. Before anything was told, to
// keep what was told before would mean to tell that there is nothing.
func (d *Dir) lost(err error, now time.Time) error {
	if d.told == nil {
		return err
	}
	d.changed = d.changed || d.trouble == nil
	d.trouble = []Problem{unreadable(d.path, err, "what it said before still counts")}
	d.again = now.Add(d.settle)
	return nil
}

// follow watches the file that a symbolic link leads to. Should that fail, the
// look that is taken now and then serves.
func (d *Dir) follow(name string, links map[int]string) {
	wd, err := d.notify.watch(filepath.Join(d.path, name), dirEvents)
	if err == nil && wd != d.self {
		links[wd] = name
	}
}

// unfollow ends the watches of files to which links led before.
func (d *Dir) unfollow(links map[int]string) {
	for wd := range d.links {
		if _, ok := links[wd]; !ok && wd != d.self {
			d.notify.unwatch(wd)
		}
	}
	d.links = links
}

// lookAt reads a file if it differs from what is known of it and may be read.
func (d *Dir) lookAt(name string, now time.Time) {
	f, path := d.file(name), filepath.Join(d.path, name)
	info, err := os.Stat(path)
	switch {
	case err != nil:
		d.failed(f, path, err, now)
	case !f.closed && versionOf(info) == f.version:
		d.changed = d.changed || !f.stale.IsZero()
		f.stale = time.Time{}
	case f.closed || d.settled(f, info.ModTime(), now):
		d.read(f, path, now)
	}
}

// read reads a file, and takes what it says unless that is to be doubted.
func (d *Dir) read(f *file, path string, now time.Time) {
	text, version, err := readFile(path)
	switch {
	case errors.Is(err, errChanging):
		if !d.settled(f, now, now) {
			return
		}
	case err != nil:
		d.failed(f, path, err, now)
		return
	}
	c, decoded := decodeFile(path, text, f.decoded)
	if c.worseThan(f.content) && !d.settled(f, f.doubted(version.modTime()), now) {
		return
	}
	*f = file{content: c, version: version, decoded: decoded}
	d.changed = true
}

// settled says whether a file that has been left alone since the time given has
// been so for long enough. If not it is stale, and there will be another look
// when it has.
func (d *Dir) settled(f *file, since, now time.Time) bool {
	// A time to come, of a clock that is not ours, tells nothing.
	if now.Sub(since).Abs() >= d.settle {
		return true
	}
	if f.stale.IsZero() {
		f.stale = now
	}
	if now.Sub(f.stale) >= d.patience {
		return true
	}
	d.waiting = true
	// By our clock, which nobody sets: since may be of the file system's.
	if then := now.Add(d.settle - now.Sub(since)); then.Before(d.again) {
		d.again = then
	}
	return false
}

// failed handles a file that cannot be read. It remains unknown, so the next look
// tries again.
func (d *Dir) failed(f *file, path string, err error, now time.Time) {
	if f.stale.IsZero() {
		f.stale = now
	}
	c := content{
		objects:  f.objects,
		problems: []Problem{unreadable(path, err, "what it said before still counts")},
	}
	// A link that leads nowhere, or something that has no text, like a
	// directory, is known to say nothing.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
		if !d.settled(f, f.stale, now) {
			return
		}
		c = content{problems: []Problem{unreadable(path, err, "it is left out")}}
	}
	f.content, f.version, f.closed = c, version{}, false
	d.changed = true
}

// missing handles a file that is not there any more.
func (d *Dir) missing(name string, f *file, now time.Time) {
	if f.stale.IsZero() {
		f.stale = now
	}
	if d.settled(f, f.stale, now) {
		delete(d.files, name)
		d.changed = true
	}
}

// news returns what differs from what was told before, if anything does. The
// first time it waits for files that are being written, because all that is not
// in the first News is taken not to exist.
func (d *Dir) news() (News, bool) {
	if !d.changed && d.told != nil || d.waiting && d.told == nil {
		return News{}, false
	}
	now, first := d.merge(), d.told == nil
	if first {
		d.told = newState()
	}
	news := now.since(d.told)
	d.told, d.changed = now, false
	return news, first || !news.empty()
}
