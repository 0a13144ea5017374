// Package introspect is what the agent shows of itself to people and to programs on the node: the views under /v1/ in the
// shapes that support tools and EKS's node monitoring read today, with what is ours beside it. It is made of copies of the
// agent's state when somebody asks; nothing can be changed by it.
package introspect
