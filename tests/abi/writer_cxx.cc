// The same writer through the header as C++ sees it.
#include "writer.c"
