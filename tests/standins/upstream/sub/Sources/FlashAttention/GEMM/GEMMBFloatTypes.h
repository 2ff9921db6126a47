// The miniature's header: a "quote", a \backslash and """# in it.
#define MINIATURE_BFLOAT 1
