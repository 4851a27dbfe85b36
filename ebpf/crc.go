package ebpf

import "hash/crc32"

// shifts are the powers of x by which the programs update the checksum of SCTP: see
// c/sctp.h.
func shifts() *bpfShifts {
	table := crc32.MakeTable(crc32.Castagnoli)
	s := &bpfShifts{}
	power := uint32(1 << 31) // x^0: bits stand in reverse
	for i := range s.ByLength {
		s.ByLength[i] = power
		power = table[byte(power)] ^ power>>8 // times x^8
	}
	return s
}
