package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// confirm asks on the terminal whether to do something with what is on a list. The
// error says that it was not confirmed, or that there is nobody to ask.
func confirm(e env, what string, list []string, question string) error {
	if !isTerminal(e.stdin) {
		return usagef("%s: standard input is no terminal to ask on: confirm by --yes", what)
	}
	for _, line := range list {
		fmt.Fprintln(e.stderr, line)
	}
	fmt.Fprintf(e.stderr, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(e.stdin).ReadString('\n') // the end of the input is a no
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return fmt.Errorf("%s: not confirmed; nothing was changed", what)
}

// isTerminal says whether it is one that is read from, or written to.
func isTerminal(stream any) bool {
	f, isFile := stream.(*os.File)
	if !isFile {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
