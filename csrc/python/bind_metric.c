/* bind_metric.c: the binding of the metric room. */
#include "binding.h"

PyMethodDef atoms_metric_methods[] = {{NULL, NULL, 0, NULL}};
