// a resource, copied beside the library
