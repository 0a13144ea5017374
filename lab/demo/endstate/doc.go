// Package endstate makes the outputs of programs that ask a cluster what it is (kubectl, the AWS CLI, ip, find)
// comparable between runs: what is there stays, in a fixed order; ids, addresses, random names and times are replaced by
// names that say what they belong to. It is pure: it runs nothing and knows nothing of the product.
//
// What it leaves out on purpose, since two good runs differ in it, is said where it is left out.
package endstate
