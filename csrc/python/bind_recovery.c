/* bind_recovery.c: the binding of the recovery room. */
#include "binding.h"

PyMethodDef atoms_recovery_methods[] = {{NULL, NULL, 0, NULL}};
