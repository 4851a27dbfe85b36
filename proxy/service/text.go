package service

import (
	"fmt"
	"slices"
)

// MarshalText makes a protocol its name, in JSON too.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a protocol's name.
func (p *Protocol) UnmarshalText(text []byte) error {
	known, err := named("protocol", text, TCP, UDP, SCTP)
	*p = known
	return err
}

// MarshalText makes a class its name.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads the name of a class.
func (c *Class) UnmarshalText(text []byte) error {
	known, err := named("class", text, FromPod, FromNode, FromOutside)
	*c = known
	return err
}

// MarshalText makes a verdict its name.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads the name of a verdict.
func (v *Verdict) UnmarshalText(text []byte) error {
	known, err := named("verdict", text, Pass, Forward, Reject, Drop)
	*v = known
	return err
}

// named is the value whose name is text.
func named[T fmt.Stringer](what string, text []byte, values ...T) (T, error) {
	i := slices.IndexFunc(values, func(v T) bool { return v.String() == string(text) })
	if i < 0 {
		var none T
		return none, fmt.Errorf("%s %q: allowed are %v", what, text, values)
	}
	return values[i], nil
}

func (c Conflict) String() string {
	return fmt.Sprintf("%s: %s has it, %s is younger", c.Key, c.Winner, c.Loser)
}
