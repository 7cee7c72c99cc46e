/* bind_theory.c: the binding of the theory room. */
#include "binding.h"

PyMethodDef atoms_theory_methods[] = {{NULL, NULL, 0, NULL}};
