package watch

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzMemory reads what was to be a file of what the API server said last. It is taken
// for one or refused; what is taken is whole.
func FuzzMemory(f *testing.F) {
	const head = `{"schema":"` + memorySchema + `","node":"n1","apiServer":"https://a","saved":"2026-01-01T00:00:00Z"}` + "\n"
	f.Add([]byte(head))
	f.Add([]byte(head + `{"kind":"Service","namespace":"default","name":"web","uid":"1","value":{}}` + "\n"))
	f.Add([]byte(head + `{"kind":"Node","name":"n1","value":null}` + "\n" + `{"kind":"EndpointSlice","name":"x","value":{"Endpoints":[{"Addr":"10.0.0.1"}]}}`))
	f.Add([]byte(`{"schema":"0"}`))
	path := filepath.Join(f.TempDir(), "state")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, objects, err := readMemory(path, origin{Node: "n1", APIServer: "https://a"})
		if err != nil && len(objects) > 0 {
			t.Errorf("%d objects of a file that is refused: %v", len(objects), err)
		}
		for o, found := range objects {
			if o.Kind == "" || found.value == nil {
				t.Errorf("%v is %v", o, found)
			}
		}
	})
}
