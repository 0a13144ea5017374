package hostnet

// Slot is where an ENI is attached: a network card of the instance, and a device index of that card.
type Slot struct{ Card, Device int }

// Bounds of what can have a mark. What instance types have is within them (aws/instance-types.csv; a test holds the two
// together): many interfaces on one card, some on a few, or few on many.
const (
	maxDevices   = 24 // of card 0
	maxCards     = 32
	devicesEach  = 6  // of each further card
	devicesWide  = 16 // of the first wideCards of them
	wideCards    = 4
	firstFurther = maxDevices
	firstWide    = firstFurther + (maxCards-1)*devicesEach
	numbers      = firstWide + wideCards*(devicesWide-devicesEach)
)

// number tells the slots that can have a mark apart: card 0 has its device indexes. -1 is none.
func (s Slot) number() int {
	switch {
	case s.Card < 0 || s.Card >= maxCards || s.Device < 0:
	case s.Card == 0 && s.Device < maxDevices:
		return s.Device
	case s.Card > 0 && s.Device < devicesEach:
		return firstFurther + (s.Card-1)*devicesEach + s.Device
	case s.Card > 0 && s.Card <= wideCards && s.Device < devicesWide:
		return firstWide + (s.Card-1)*(devicesWide-devicesEach) + s.Device - devicesEach
	}
	return -1
}

// slotOf is the reverse of number.
func slotOf(number int) Slot {
	switch {
	case number < firstFurther:
		return Slot{0, number}
	case number < firstWide:
		at := number - firstFurther
		return Slot{1 + at/devicesEach, at % devicesEach}
	}
	at := number - firstWide
	return Slot{1 + at/(devicesWide-devicesEach), devicesEach + at%(devicesWide-devicesEach)}
}

// Mark is the mark of what the pods of the slot's ENI send; 0 for a slot that has none: its pods need a rule each.
func (s Slot) Mark() uint32 { return markOf(s.number()) }

// markOf puts a number's bits around the one bit of the mask that is the AWS VPC CNI's.
func markOf(number int) uint32 {
	n := uint32(number + 1)
	return n&0x7f | n&0x80<<1
}

// furtherTables is where the tables of further cards begin.
const furtherTables = 10000

// Table is the routing table of the slot's ENI (upstream's numbers).
func (s Slot) Table() int {
	switch {
	case s.Card > 0:
		return furtherTables + 100*s.Card + s.Device
	case s.Device == 0:
		return MainTable
	}
	return s.Device + 1
}

// isFurther says whether a table may be that of an ENI of a further card.
func isFurther(table int) bool {
	return table >= furtherTables+100 && table < furtherTables+100*maxCards
}
