package watch

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// lineOf returns the line on which the field at path stands in a document, or
// the line of its nearest ancestor if the field is absent. Of a key that is
// there twice it is the last line.
func lineOf(root *yaml.Node, path string) int {
	node, line := root, root.Line
	for path != "" {
		key, value, rest := step(resolve(node), path)
		if value == nil {
			break
		}
		node, line, path = value, key.Line, rest
	}
	return line
}

// step finds the child of node that path leads through: the node of its key (in
// a list, of itself), its value and the rest of the path.
func step(node *yaml.Node, path string) (key, value *yaml.Node, rest string) {
	switch node.Kind {
	case yaml.MappingNode:
		return stepKey(node, path)
	case yaml.SequenceNode:
		index, rest, ok := strings.Cut(strings.TrimPrefix(path, "["), "]")
		i, err := strconv.Atoi(index)
		if !ok || err != nil || i < 0 || i >= len(node.Content) {
			return nil, nil, ""
		}
		return node.Content[i], node.Content[i], strings.TrimPrefix(rest, ".")
	}
	return nil, nil, ""
}

// stepKey looks for the longest key that path begins with: keys have dots too,
// those of labels for example, and nothing quotes them.
func stepKey(node *yaml.Node, path string) (key, value *yaml.Node, rest string) {
	for i := 0; i+1 < len(node.Content); i += 2 {
		k := node.Content[i]
		if key != nil && len(k.Value) < len(key.Value) {
			continue
		}
		after, ok := strings.CutPrefix(path, k.Value)
		if ok && (after == "" || after[0] == '.' || after[0] == '[') {
			key, value, rest = k, node.Content[i+1], strings.TrimPrefix(after, ".")
		}
	}
	return key, value, rest
}

// resolve returns the node that an alias stands for.
func resolve(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

// keysTwice returns the path of every key that a mapping of the document has
// more than once.
func keysTwice(node *yaml.Node, path string) []string {
	var twice []string
	switch node.Kind {
	case yaml.MappingNode:
		seen := map[string]bool{}
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i].Value
			child := strings.TrimPrefix(path+"."+key, ".")
			if seen[key] {
				twice = append(twice, child)
			}
			seen[key] = true
			twice = append(twice, keysTwice(node.Content[i+1], child)...)
		}
	case yaml.SequenceNode:
		for i, item := range node.Content {
			twice = append(twice, keysTwice(item, path+"["+strconv.Itoa(i)+"]")...)
		}
	}
	return twice
}
