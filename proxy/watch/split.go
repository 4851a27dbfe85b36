package watch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// document is the text of one YAML document or JSON object of a file.
type document struct {
	line int // of the file, on which text begins
	text []byte
}

// split cuts a file into its documents, so that each can be decoded, and be
// wrong, by itself. It needs no parser: YAML forbids a line that begins with
// --- or ... within a document, in whatever quotes or indentation (YAML 1.2,
// rule c-forbidden). Blank lines and comments before a document are not part of
// it.
func split(text []byte) []document {
	s := splitter{text: bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))}
	for line := range bytes.Lines(s.text) {
		s.take(line)
		s.offset += len(line)
	}
	s.end()
	return s.docs
}

// splitter walks over the lines of a file.
type splitter struct {
	text    []byte
	docs    []document
	offset  int // of the current line
	line    int // its number
	begin   int // where the current document begins, if inside
	first   int // the number of its first line
	inside  bool
	preface bool // the document began with %YAML or %TAG: its --- is to come
}

func (s *splitter) take(line []byte) {
	s.line++
	if s.inside && line[0] != '-' && line[0] != '.' {
		return // as most lines
	}
	switch {
	case isMarker(line, "..."):
		s.end()
		return
	case isMarker(line, "---") && s.preface:
		s.preface = false
	case isMarker(line, "---"):
		s.end()
		if isBlank(line[len("---"):]) {
			return
		}
	case s.inside:
	case isBlank(line):
		return
	case line[0] == '%':
		s.preface = true
	}
	if !s.inside {
		s.inside, s.begin, s.first = true, s.offset, s.line
	}
}

// end ends the current document before the current line.
func (s *splitter) end() {
	if s.inside {
		s.docs = append(s.docs, splitJSON(document{line: s.first, text: s.text[s.begin:s.offset]})...)
	}
	s.inside, s.preface = false, false
}

// isMarker says whether a line is a document marker, which white space or the
// end of the line must follow.
func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// isBlank says whether a line has nothing but white space or a comment.
func isBlank(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) == 0 || line[0] == '#'
}

// splitJSON cuts a stream of JSON objects into its objects, as kubectl does. What
// is not such a stream stays one document.
func splitJSON(doc document) []document {
	if doc.text[0] != '{' {
		return []document{doc}
	}
	var docs []document
	stream := json.NewDecoder(bytes.NewReader(doc.text))
	line, seen := doc.line, 0
	for {
		var value json.RawMessage
		err := stream.Decode(&value)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			return []document{doc}
		}
		start := int(stream.InputOffset()) - len(value)
		line += bytes.Count(doc.text[seen:start], []byte("\n"))
		seen = start
		docs = append(docs, document{line: line, text: value})
	}
}
