// The same recorder through the header as C++ sees it.
#include "writer.c"
