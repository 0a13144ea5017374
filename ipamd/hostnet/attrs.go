package hostnet

import (
	"encoding/binary"
	"iter"
)

const attributeHeader = 4

// attributes yields the type and value of each netlink attribute in b; it ends at the first that is cut off.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attributeHeader {
			length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if length < attributeHeader || length > len(b) || !yield(kind&^0xc000, b[attributeHeader:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}
