package nft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// verify returns, in words, what differs from elements in the table described.
// The error may wrap ErrUnsupported.
func (c *Conn) verify(elements []element, table construct) ([]string, error) {
	differences, gone, err := table.damage()
	if err != nil || gone {
		return differences, err
	}
	for _, e := range elements {
		found, err := c.get(e)
		if err != nil {
			return nil, fmt.Errorf("look into nftables set %s: %w", e.set.name, err)
		}
		if difference := e.compare(found); difference != "" {
			differences = append(differences, difference)
		}
	}
	return differences, nil
}

// compare returns what differs of the element found, nil if there is none.
func (e element) compare(found *element) string {
	switch {
	case found == nil:
		return fmt.Sprintf("%s is not in nftables %s", e.what, e.set.name)
	case found.comment != e.comment:
		return fmt.Sprintf("%s in nftables %s is of %s, not %s", e.what, e.set.name, found.comment, e.comment)
	case found.chain != e.chain:
		return fmt.Sprintf("%s in nftables %s leads to chain %s, not %s", e.what, e.set.name, found.chain, e.chain)
	}
	return ""
}

// damage returns, in words, what is missing of the rules described, and whether
// that is all of them. Rules are counted and not compared: they have no names,
// and what removes some removes them by the chain.
func (f construct) damage() (missing []string, gone bool, err error) {
	d, err := newDraft()
	if err != nil {
		return nil, false, err
	}
	if err := f(d); err != nil {
		return nil, false, err
	}
	look, err := nftables.New()
	if err != nil {
		return nil, false, fmt.Errorf("open nftables: %w", err)
	}
	gone = true
	for _, chain := range d.chains {
		rules, err := look.GetRules(chain.Table, chain.Chain)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, false, ErrUnsupported
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, false, fmt.Errorf("list rules of nftables chain %s: %w", chain.Name, err)
		}
		gone = gone && len(rules) == 0
		if len(rules) != chain.rules {
			missing = append(missing, fmt.Sprintf("chain %s has %d rules, not %d", chain.Name, len(rules), chain.rules))
		}
	}
	table := fmt.Sprintf("nftables table %s %s", familyNames[d.chains[0].Table.Family], tableName)
	if gone {
		return []string{table + " has no rules"}, true, nil
	}
	if len(missing) == 0 {
		return nil, false, nil
	}
	return []string{table + ": " + strings.Join(missing, ", ")}, false, nil
}

// familyNames are as in nft(8).
var familyNames = map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge"}

// repair adds the elements that are missing, having made the table described anew
// if that was changed. What another owner has is left alone.
func (c *Conn) repair(elements []element, table construct) (err error) {
	for range attempts {
		if err = c.repairOnce(elements, table); !errors.Is(err, unix.ENOENT) { // else it was removed again meanwhile
			break
		}
	}
	return err
}

func (c *Conn) repairOnce(elements []element, table construct) error {
	damage, _, err := table.damage()
	if err != nil {
		return err
	}
	if len(damage) != 0 {
		if err := table.build(); err != nil {
			return err
		}
	}
	var missing []element
	for _, e := range elements {
		found, err := c.get(e)
		if err != nil {
			return fmt.Errorf("look into nftables set %s: %w", e.set.name, err)
		}
		if found == nil {
			missing = append(missing, e)
		}
	}
	err = c.commit(adding(missing))
	if errors.Is(err, unix.EEXIST) { // its own ADD was faster
		return nil
	}
	return err
}
