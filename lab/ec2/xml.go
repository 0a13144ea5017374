package ec2

import (
	"bytes"
	"encoding/xml"
	"strconv"
	"time"
)

// element is a piece of an answer. Answers are trees of named texts, so a tree says it with less than a struct for each
// of some hundred shapes.
type element struct {
	name string
	text string
	kids []element
}

func el(name string, kids ...element) element { return element{name: name, kids: kids} }

func str(name, v string) element { return element{name: name, text: v} }

func num(name string, n int) element { return str(name, strconv.Itoa(n)) }

func flag(name string, b bool) element { return str(name, strconv.FormatBool(b)) }

func stamp(name string, t time.Time) element {
	return str(name, t.UTC().Format("2006-01-02T15:04:05.000Z"))
}

// list is a set in the form of EC2: <name><item>…</item>…</name>.
func list[T any](name string, all []T, f func(T) []element) element {
	return listOf(name, "item", all, f)
}

func listOf[T any](name, member string, all []T, f func(T) []element) element {
	e := element{name: name}
	for _, v := range all {
		e.kids = append(e.kids, el(member, f(v)...))
	}
	return e
}

// optional leaves out an element without text.
func optional(name, v string) []element {
	if v == "" {
		return nil
	}
	return []element{str(name, v)}
}

func join(parts ...[]element) []element {
	var all []element
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (e element) write(b *bytes.Buffer, attr string) {
	b.WriteByte('<')
	b.WriteString(e.name)
	b.WriteString(attr)
	b.WriteByte('>')
	if e.text != "" {
		_ = xml.EscapeText(b, []byte(e.text)) // a bytes.Buffer takes everything
	}
	for _, k := range e.kids {
		k.write(b, "")
	}
	b.WriteString("</")
	b.WriteString(e.name)
	b.WriteByte('>')
}

func (e element) document(namespace string) []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	attr := ""
	if namespace != "" {
		attr = ` xmlns="` + namespace + `"`
	}
	e.write(&b, attr)
	return b.Bytes()
}
