package main

import (
	"bytes"
	"context"
	_ "embed" // lock.sh
	"io"
	"os"
	"os/exec"
)

// lockScript has apt, which looks at the signatures, resolve what is needed.
//
//go:embed lock.sh
var lockScript []byte

// printLock prints packages.lock as it would be today.
func printLock(ctx context.Context, w io.Writer) error {
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-s")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(lockScript), w, os.Stderr
	return cmd.Run()
}
