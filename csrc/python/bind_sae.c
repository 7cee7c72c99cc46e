/* bind_sae.c: the binding of the sae room. */
#include "binding.h"

PyMethodDef atoms_sae_methods[] = {{NULL, NULL, 0, NULL}};
