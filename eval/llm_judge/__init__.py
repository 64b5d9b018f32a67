"""Ask a language model whether answers state what they should."""
