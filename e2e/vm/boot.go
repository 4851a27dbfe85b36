package vm

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
)

// memoryMB is the machine's: its files are in it twice while it boots.
const memoryMB = 3072

const processors = 2

// Boot starts a machine and calls line with each line of its console, until it
// ends or ctx does.
func Boot(ctx context.Context, k Kernel, r Root, line func(string)) error {
	image, err := k.image()
	if err != nil {
		return err
	}
	initramfs, err := r.initramfs(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-m", fmt.Sprint(memoryMB), "-smp", fmt.Sprint(processors), "-accel", "tcg,thread=multi", "-cpu", "max",
		"-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio",
		"-kernel", image, "-initrd", initramfs,
		// noapic: without KVM its timer is sometimes found to be broken at boot.
		"-append", "console=ttyS0 quiet noapic panic=-1 mitigations=off")
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu: %w", err)
	}
	lines := bufio.NewScanner(console)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line(lines.Text())
	}
	if err := cmd.Wait(); ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err != nil {
		return fmt.Errorf("run qemu: %w", err)
	}
	return lines.Err()
}
