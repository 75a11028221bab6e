// An empty Python module: its shared library carries the C functions that Python calls through ctypes.
#include <Python.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, TEXT(MODULE_NAME), nullptr, -1, nullptr,
                                        nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC JOIN(PyInit_, MODULE_NAME)(void) { return PyModule_Create(&definition); }
