/* SPDX-License-Identifier: Apache-2.0
 *
 * wideep._binding: wideep_shm.h for Python. The type Writer is one handle; read() makes a dictionary of a segment.
 *
 * The interpreter's lock is held during each call but wideep_create(). That is what makes the header's rules hold: one
 * thread at a time per handle, and no wideep_open() during a wideep_check() or wideep_close() of the same process; for
 * wideep_create() there is a mutex.
 *
 * Arrays are read where they are, for the duration of a call: through the buffer protocol where an object has it, else
 * through DLPack (https://dmlc.github.io/dlpack), whose capsule is borrowed and not consumed: its own destructor frees
 * it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>

#include "wideep_shm.h"

/* Strong reference for as long as the process lives: the module is made once (m_size is -1). */
static PyObject *wideep_error;

static PyObject *new_ref(PyObject *object)
{
    Py_INCREF(object);
    return object;
}

static PyObject *raise_text(int error, const char *general, const char *reason, PyObject *path)
{
    PyObject *text = reason ? PyUnicode_FromFormat("%s: %s", general, reason) : PyUnicode_FromString(general);
    PyObject *value = NULL;
    if (text && path)
        value = PyObject_CallFunction(wideep_error, "iOO", -error, text, path);
    else if (text)
        value = PyObject_CallFunction(wideep_error, "iO", -error, text);
    if (value)
        PyErr_SetObject(wideep_error, value);
    Py_XDECREF(value);
    Py_XDECREF(text);
    return NULL;
}

static PyObject *raise_error(int error, const char *reason, PyObject *path)
{
    return raise_text(error, wideep_error_text(error), reason, path);
}

static PyObject *none_or_error(int error, PyObject *path)
{
    return error ? raise_error(error, NULL, path) : new_ref(Py_None);
}

/* ---- creation among threads --------------------------------------------------------------------------------- */

/* wideep_create() may wait for seconds, so it holds this mutex and not the interpreter's lock. All else that opens or
 * closes a segment holds both, and calls nothing of Python's meanwhile: hence a thread that has the interpreter's lock
 * finds the mutex taken by a creation only, which needs nothing of the interpreter to end. */
static pthread_mutex_t creation = PTHREAD_MUTEX_INITIALIZER;
static pid_t creation_pid; /* whose mutex it is; under the interpreter's lock */

/* In a forked child, the mutex may have been left locked by a thread that is not there. */
static void creation_renew(void)
{
    const pid_t pid = getpid();
    if (creation_pid != pid) {
        (void)pthread_mutex_init(&creation, NULL);
        creation_pid = pid;
    }
}

/* The waiting ends before the interpreter's lock is taken again, and without the mutex: that is where an interpreter
 * that shuts down ends its threads. */
static void creation_lock(void)
{
    creation_renew();
    while (pthread_mutex_trylock(&creation) != 0) {
        Py_BEGIN_ALLOW_THREADS;
        (void)pthread_mutex_lock(&creation);
        (void)pthread_mutex_unlock(&creation);
        Py_END_ALLOW_THREADS;
    }
}

static void creation_unlock(void)
{
    (void)pthread_mutex_unlock(&creation);
}

static int create(struct wideep_writer **ret, const struct wideep_config *config)
{
    int error;
    creation_renew();
    Py_BEGIN_ALLOW_THREADS;
    (void)pthread_mutex_lock(&creation);
    error = wideep_create(ret, config);
    (void)pthread_mutex_unlock(&creation);
    Py_END_ALLOW_THREADS;
    return error;
}

static void close_writer(struct wideep_writer **handle)
{
    creation_lock();
    wideep_close(handle);
    creation_unlock();
}

/* ---- arguments ---------------------------------------------------------------------------------------------- */

/* "O&" converters, as the letters of PyArg_Parse do not look at the range. Anything with __index__ is an integer. */
static int to_u64(PyObject *object, void *ret)
{
    PyObject *number = PyNumber_Index(object);
    if (!number)
        return 0;
    unsigned long long value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (value == (unsigned long long)-1 && PyErr_Occurred())
        return 0;
    *(uint64_t *)ret = value;
    return 1;
}

static int to_u32(PyObject *object, void *ret)
{
    uint64_t value;
    if (!to_u64(object, &value))
        return 0;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the number does not fit into 32 bits");
        return 0;
    }
    *(uint32_t *)ret = (uint32_t)value;
    return 1;
}

/* The engine's passes since the last rearrangement; None: it does not say. */
static int to_step(PyObject *object, void *ret)
{
    return object == Py_None || to_u32(object, ret);
}

/* The index of a word in a list. */
static int to_index(const char *word, const char *const *words, unsigned count, const char *what, uint32_t *ret)
{
    for (unsigned i = 0; i < count; i++)
        if (strcmp(word, words[i]) == 0) {
            *ret = i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "unknown %s '%s'", what, word);
    return 0;
}

static const char *const roles[] = {NULL, "rank", "frontend"}; /* enum wideep_role */
static const char *const modes[WIDEEP_MODES] = {"sync", "async"};
static const char *const phases[WIDEEP_PHASES] = {"prefill", "decode"};
static const char *const outcomes[WIDEEP_OUTCOMES] = {
    "engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure", "other"};

/* ---- arrays ------------------------------------------------------------------------------------------------- */

/* What this file needs of DLPack's structures; the order and width of the fields are that interface's. */
enum { DL_CPU = 1, DL_CUDA_HOST = 3, DL_ROCM_HOST = 11 };
enum { DL_INT = 0, DL_FLOAT = 2 };

struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t dimensions;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: contiguous */
    uint64_t byte_offset;
};

#define MAX_DIMENSIONS 2

enum kind { KIND_OTHER, KIND_INT, KIND_FLOAT }; /* signed integers */

/* Somebody's array, valid until array_release(). */
struct array {
    const unsigned char *data;
    enum kind kind;
    int64_t item_size;
    int dimensions;
    int64_t shape[MAX_DIMENSIONS];
    Py_buffer buffer;  /* obj is NULL: not of a buffer */
    PyObject *capsule; /* NULL: not of DLPack */
};

static void array_release(struct array *array)
{
    if (array->buffer.obj)
        PyBuffer_Release(&array->buffer);
    Py_CLEAR(array->capsule);
}

/* Takes over a shape with strides in units of `unit` bytes (NULL: contiguous), which must be row after row without
 * gaps. The stride of a dimension with one entry, or of an empty array, says nothing. */
static int array_shape(struct array *array, const char *name, int dimensions, const int64_t *shape,
                       const int64_t *strides, int64_t unit)
{
    int64_t expected = array->item_size;
    if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
        PyErr_Format(PyExc_ValueError, "%s: an array of %d dimensions", name, dimensions);
        return 0;
    }
    array->dimensions = dimensions;
    for (int i = dimensions - 1; i >= 0; i--) {
        array->shape[i] = shape[i];
        if (strides && shape[i] > 1 && strides[i] * unit != expected) {
            PyErr_Format(PyExc_ValueError, "%s: the array is not C-contiguous", name);
            return 0;
        }
        expected *= shape[i];
    }
    return 1;
}

static int array_of_buffer(struct array *array, const char *name, PyObject *object)
{
    if (PyObject_GetBuffer(object, &array->buffer, PyBUF_RECORDS_RO) != 0)
        return 0;
    const Py_buffer *buffer = &array->buffer;
    const char *format = buffer->format ? buffer->format : "B";
    if (*format == '@' || *format == '=' || *format == (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>'))
        format++;
    if (*format && !format[1])
        array->kind = strchr("ilq", *format) ? KIND_INT : strchr("fd", *format) ? KIND_FLOAT : KIND_OTHER;
    array->data = buffer->buf;
    array->item_size = buffer->itemsize;
    int64_t shape[MAX_DIMENSIONS] = {0}, strides[MAX_DIMENSIONS] = {0};
    for (int i = 0; i < buffer->ndim && i < MAX_DIMENSIONS; i++) {
        shape[i] = buffer->shape[i];
        strides[i] = buffer->strides[i];
    }
    return array_shape(array, name, buffer->ndim, shape, strides, 1);
}

/* Is the object in memory that this processor reads? Asked before __dlpack__(), which might wait for a device. */
static int in_host_memory(PyObject *object, const char *name)
{
    int type, id;
    PyObject *device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
    if (!device)
        return 0;
    int good = PyTuple_Check(device);
    if (good)
        good = PyArg_ParseTuple(device, "ii", &type, &id);
    else
        PyErr_Format(PyExc_TypeError, "%s: __dlpack_device__() returns no tuple", name);
    Py_DECREF(device);
    if (good && type != DL_CPU && type != DL_CUDA_HOST && type != DL_ROCM_HOST) {
        PyErr_Format(PyExc_ValueError, "%s: the array is not in the CPU's memory; copy it there first", name);
        good = 0;
    }
    return good;
}

static int array_of_dlpack(struct array *array, const char *name, PyObject *object)
{
    if (!PyObject_HasAttrString(object, "__dlpack__")) {
        PyErr_Format(PyExc_TypeError, "%s: an array is needed (buffer protocol or DLPack)", name);
        return 0;
    }
    if (!in_host_memory(object, name))
        return 0;
    array->capsule = PyObject_CallMethod(object, "__dlpack__", NULL);
    if (!array->capsule)
        return 0;
    const struct dl_tensor *tensor = PyCapsule_GetPointer(array->capsule, "dltensor");
    if (!tensor)
        return 0;
    if (tensor->type_lanes == 1)
        array->kind = tensor->type_code == DL_INT ? KIND_INT : tensor->type_code == DL_FLOAT ? KIND_FLOAT : KIND_OTHER;
    array->data = (const unsigned char *)tensor->data + tensor->byte_offset;
    array->item_size = tensor->type_bits / 8;
    return array_shape(array, name, tensor->dimensions, tensor->shape, tensor->strides, array->item_size);
}

/* Opens an object as an array. On failure an exception is set and there is nothing to release. */
static int array_open(struct array *array, const char *name, PyObject *object)
{
    memset(array, 0, sizeof *array);
    int good =
        PyObject_CheckBuffer(object) ? array_of_buffer(array, name, object) : array_of_dlpack(array, name, object);
    if (good && array->item_size > 0 && (uintptr_t)array->data % (uintptr_t)array->item_size != 0) {
        PyErr_Format(PyExc_ValueError, "%s: the array is not aligned", name);
        good = 0;
    }
    if (!good)
        array_release(array);
    return good;
}

static int array_is_matrix(const struct array *array, const char *name, uint32_t rows, uint32_t columns)
{
    if (array->dimensions == 2 && array->shape[0] == rows && array->shape[1] == columns)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: the shape must be (%u, %u)", name, (unsigned)rows, (unsigned)columns);
    return 0;
}

static int array_is_int(const struct array *array, const char *name, int also_64)
{
    if (array->kind == KIND_INT && (array->item_size == 4 || (also_64 && array->item_size == 8)))
        return 1;
    PyErr_Format(PyExc_TypeError, "%s: the type of its items must be int32%s", name, also_64 ? " or int64" : "");
    return 0;
}

/* ---- Writer ------------------------------------------------------------------------------------------------- */

/* What the shapes of arrays are held against. A copy, because the handle is wiped in a forked child. */
struct model_shape {
    uint32_t layers, physical_experts;
};

struct writer {
    PyObject head;                /* what PyObject_HEAD declares */
    struct wideep_writer *handle; /* NULL: closed */
    PyObject *path;               /* str */
    int opening;                  /* a thread is creating the segment */
    uint32_t model_count;         /* 0: never open */
    struct model_shape models[WIDEEP_MAX_MODELS];
    int32_t *narrow;                  /* room for the widest model's map, when a map of int64 came */
    struct wideep_eplb_layer *layers; /* room for the deepest model's layers, when reduced figures came */
    unsigned long pid;
    enum wideep_origin origin;
};

/* The file's path, as far as known before it is there. */
static PyObject *segment_path(const struct wideep_config *config)
{
    char name[128];
    wideep_segment_name(name, sizeof name, config->instance, config->role, config->engine, config->rank);
    PyObject *directory = PyUnicode_DecodeFSDefault(config->directory);
    PyObject *path = directory ? PyUnicode_FromFormat("%U/%s", directory, name) : NULL;
    Py_XDECREF(directory);
    return path;
}

/* `models`: a tuple of tuples (name, layers, logical experts, physical experts). The names stay theirs. */
static int parse_models(PyObject *models, struct wideep_config *config)
{
    const Py_ssize_t count = PyTuple_Size(models);
    if (count < 1 || count > (Py_ssize_t)WIDEEP_MAX_MODELS) {
        PyErr_Format(PyExc_ValueError, "models: 1 to %u of them", WIDEEP_MAX_MODELS);
        return 0;
    }
    config->model_count = (uint32_t)count;
    for (uint32_t m = 0; m < config->model_count; m++) {
        struct wideep_model_config *to = &config->models[m];
        PyObject *model = PyTuple_GetItem(models, m);
        if (!PyTuple_Check(model)) {
            PyErr_SetString(PyExc_TypeError, "models: each must be a Model");
            return 0;
        }
        if (!PyArg_ParseTuple(model, "sO&O&O&;models: Model(name, layers, logical_experts, physical_experts)",
                              &to->name, to_u32, &to->layers, to_u32, &to->logical_experts, to_u32,
                              &to->physical_experts))
            return 0;
    }
    return 1;
}

static const char *model_fault(const struct wideep_config *config, uint32_t ep_size, uint32_t m)
{
    const struct wideep_model_config *model = &config->models[m];
    const uint32_t physical = model->physical_experts ? model->physical_experts : model->logical_experts;
    if (!*model->name)
        return "models: a name is empty";
    for (uint32_t other = 0; other < m; other++)
        if (strcmp(config->models[other].name, model->name) == 0)
            return "models: two of them have the same name";
    if (config->role == WIDEEP_ROLE_FRONTEND)
        return NULL;
    if (model->layers > WIDEEP_MAX_LAYERS)
        return "models: layers";
    if (model->logical_experts > WIDEEP_MAX_LOGICAL_EXPERTS || (model->layers && !model->logical_experts))
        return "models: logical_experts";
    if (physical > WIDEEP_MAX_PHYSICAL_EXPERTS || (model->layers && physical % ep_size))
        return "models: physical_experts must be a multiple of ep_size, and not too many";
    return NULL;
}

/* Which argument made wideep_create() refuse with EINVAL. */
static const char *config_fault(const struct wideep_config *config)
{
    const uint32_t ep_size = config->ep_size ? config->ep_size : 1;
    if (!wideep_instance_valid(config->instance, strlen(config->instance)))
        return "instance (WIDEEP_INSTANCE) is of A-Z a-z 0-9 . _ -, without a leading dot";
    if (config->engine > WIDEEP_MAX_NUMBER)
        return "engine";
    if (config->role == WIDEEP_ROLE_RANK && ep_size > WIDEEP_MAX_EP_SIZE)
        return "ep_size";
    if (config->rank > WIDEEP_MAX_NUMBER || (config->role == WIDEEP_ROLE_RANK && config->rank >= ep_size))
        return "rank must be below ep_size";
    if (config->tp_rank > WIDEEP_MAX_NUMBER)
        return "tp_rank";
    const char *fault = NULL;
    for (uint32_t m = 0; !fault && m < config->model_count; m++)
        fault = model_fault(config, ep_size, m);
    return fault ? fault : "models: together too large";
}

static int writer_create(struct writer *self, const struct wideep_config *config)
{
    /* Once only: a call that is under way has checked its arrays against these models. */
    if (self->model_count || self->opening) {
        PyErr_SetString(PyExc_RuntimeError, "the writer was opened already");
        return -1;
    }
    Py_CLEAR(self->path);
    self->path = segment_path(config);
    if (!self->path)
        return -1;
    struct wideep_writer *handle = NULL;
    self->opening = 1;
    int error = create(&handle, config);
    self->opening = 0;
    if (error) {
        raise_error(error, error == -EINVAL ? config_fault(config) : NULL, self->path);
        return -1;
    }
    self->handle = handle;
    self->pid = (unsigned long)getpid();
    self->origin = wideep_origin(self->handle);
    self->model_count = config->model_count;
    for (uint32_t m = 0; m < config->model_count; m++) {
        const struct wideep_model_config *model = &config->models[m];
        self->models[m].layers = config->role == WIDEEP_ROLE_FRONTEND ? 0 : model->layers;
        self->models[m].physical_experts = model->physical_experts ? model->physical_experts : model->logical_experts;
    }
    return 0;
}

static int writer_init(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"directory", "instance", "role",     "models",     "engine",
                            "rank",      "ep_size",  "tp_rank",  "tp_size",    "dp_rank",
                            "dp_size",   "group",    "interval", "replicated", NULL};
    struct wideep_config config = {0};
    PyObject *directory = NULL, *models;
    const char *role;
    int replicated;
    if (!PyArg_ParseTupleAndKeywords(
            args, keywords, "O&ssO!O&O&O&O&O&O&O&O&O&p", names, PyUnicode_FSConverter, &directory, &config.instance,
            &role, &PyTuple_Type, &models, to_u32, &config.engine, to_u32, &config.rank, to_u32, &config.ep_size,
            to_u32, &config.tp_rank, to_u32, &config.tp_size, to_u32, &config.dp_rank, to_u32, &config.dp_size, to_u64,
            &config.group, to_u64, &config.rearrangement_interval, &replicated))
        return -1;
    config.directory = PyBytes_AsString(directory);
    config.flags = replicated ? WIDEEP_LOADS_REPLICATED : 0;
    int result = -1;
    if (config.directory && to_index(role, roles + 1, 2, "role", &config.role) && parse_models(models, &config)) {
        config.role++; /* there is no role 0 */
        result = writer_create((struct writer *)object, &config);
    }
    Py_DECREF(directory);
    return result;
}

static void writer_dealloc(PyObject *object)
{
    struct writer *self = (struct writer *)object;
    PyTypeObject *type = Py_TYPE(object);
    close_writer(&self->handle);
    PyMem_Free(self->narrow);
    PyMem_Free(self->layers);
    Py_XDECREF(self->path);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Is there a handle? In a forked child there is, and the header refuses it; it also refuses one that the code of an
 * argument has closed since. */
static int writer_open(const struct writer *self)
{
    if (self->handle)
        return 1;
    PyObject *value =
        PyObject_CallFunction(wideep_error, "isO", EBADF, "the writer is closed", self->path ? self->path : Py_None);
    if (value)
        PyErr_SetObject(wideep_error, value);
    Py_XDECREF(value);
    return 0;
}

/* What a pass number is before the keywords are parsed: PyArg_Parse cannot require one of them. */
#define NO_PASS UINT64_MAX

static int writer_pass(const struct writer *self, const struct wideep_pass *pass)
{
    if (pass->pass == NO_PASS) {
        PyErr_SetString(PyExc_TypeError, "the keyword argument pass_ is required, at most 2**63 - 1");
        return 0;
    }
    if (!writer_open(self))
        return 0;
    if (pass->model < self->model_count)
        return 1;
    raise_error(-EINVAL, "model", self->path);
    return 0;
}

/* A map of int64 as one of int32, in the writer's own room. What does not fit becomes an entry out of range. */
static const int32_t *writer_narrow(struct writer *self, const int64_t *map, size_t count)
{
    if (!self->narrow) {
        size_t room = 0;
        for (uint32_t m = 0; m < self->model_count; m++) {
            size_t model = (size_t)self->models[m].layers * self->models[m].physical_experts;
            room = model > room ? model : room;
        }
        self->narrow = PyMem_Malloc(room * sizeof *self->narrow);
        if (!self->narrow) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    int32_t *to = self->narrow;
    for (size_t i = 0; i < count; i++) {
        /* By halves, which compilers do four at a time; the high one must be the sign. */
        const int32_t low = (int32_t)map[i], high = (int32_t)(map[i] >> 32);
        to[i] = high == (low < 0 ? -1 : 0) ? low : INT32_MIN;
    }
    return to;
}

/* The map's entries, for as long as `array` is open; `*ret` is NULL for None. */
static int writer_map(struct writer *self, const struct model_shape *model, PyObject *object, struct array *array,
                      const int32_t **ret)
{
    static const char name[] = "physical_to_logical";
    memset(array, 0, sizeof *array);
    *ret = NULL;
    if (object == Py_None)
        return 1;
    if (!array_open(array, name, object))
        return 0;
    if (array_is_int(array, name, 1) && array_is_matrix(array, name, model->layers, model->physical_experts))
        *ret = array->item_size == 4 ? (const int32_t *)(const void *)array->data
                                     : writer_narrow(self, (const int64_t *)(const void *)array->data,
                                                     (size_t)model->layers * model->physical_experts);
    if (*ret)
        return 1;
    array_release(array);
    return 0;
}

static PyObject *writer_record_pass(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"loads", "physical_to_logical",       "pass_", "step",
                            "model", "rearrangement_duration_ns", NULL};
    struct writer *self = (struct writer *)object;
    struct wideep_pass pass = {.pass = NO_PASS, .step = WIDEEP_STEP_UNKNOWN};
    struct array loads, map;
    PyObject *loads_object, *map_object;
    const int32_t *entries;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$O&O&O&O&", names, &loads_object, &map_object, to_u64,
                                     &pass.pass, to_step, &pass.step, to_u32, &pass.model, to_u64,
                                     &pass.rearrangement_duration_ns) ||
        !writer_pass(self, &pass) || !array_open(&loads, "loads", loads_object))
        return NULL;
    const struct model_shape *model = &self->models[pass.model];
    PyObject *result = NULL;
    if (array_is_int(&loads, "loads", 0) && array_is_matrix(&loads, "loads", model->layers, model->physical_experts) &&
        writer_map(self, model, map_object, &map, &entries)) {
        result = none_or_error(
            wideep_record_pass(self->handle, &pass, (const int32_t *)(const void *)loads.data, entries), self->path);
        array_release(&map);
    }
    array_release(&loads);
    return result;
}

static PyObject *writer_skip_pass(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"pass_", "step", "model", NULL};
    struct writer *self = (struct writer *)object;
    struct wideep_pass pass = {.pass = NO_PASS, .step = WIDEEP_STEP_UNKNOWN};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$O&O&O&", names, to_u64, &pass.pass, to_step, &pass.step, to_u32,
                                     &pass.model) ||
        !writer_pass(self, &pass))
        return NULL;
    return none_or_error(wideep_skip_pass(self->handle, &pass), self->path);
}

static double array_double(const struct array *array, size_t i)
{
    if (array->item_size == 8)
        return ((const double *)(const void *)array->data)[i];
    return (double)((const float *)(const void *)array->data)[i];
}

static int array_is_figures(const struct array *array, const char *name, uint32_t layers)
{
    if (array->kind != KIND_FLOAT || (array->item_size != 4 && array->item_size != 8)) {
        PyErr_Format(PyExc_TypeError, "%s: the type of its items must be float32 or float64", name);
        return 0;
    }
    if (array->dimensions == 1 && array->shape[0] == layers)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: the shape must be (%u,)", name, (unsigned)layers);
    return 0;
}

static PyObject *writer_reduced(struct writer *self, const struct wideep_pass *pass, const struct array *avg,
                                const struct array *max)
{
    const uint32_t count = self->models[pass->model].layers;
    if (!array_is_figures(avg, "avg", count) || !array_is_figures(max, "max_", count))
        return NULL;
    if (!self->layers)
        self->layers = PyMem_Calloc(WIDEEP_MAX_LAYERS, sizeof *self->layers);
    if (!self->layers)
        return PyErr_NoMemory();
    for (uint32_t i = 0; i < count; i++) {
        self->layers[i].layer = i;
        self->layers[i].avg_tokens_per_rank = array_double(avg, i);
        self->layers[i].max_tokens_per_rank = array_double(max, i);
    }
    return none_or_error(wideep_record_eplb(self->handle, pass, self->layers, count), self->path);
}

static PyObject *writer_record_eplb(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"avg", "max_", "pass_", "step", "model", "rearrangement_duration_ns", NULL};
    struct writer *self = (struct writer *)object;
    struct wideep_pass pass = {.pass = NO_PASS, .step = WIDEEP_STEP_UNKNOWN};
    struct array avg, max;
    PyObject *avg_object, *max_object, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$O&O&O&O&", names, &avg_object, &max_object, to_u64,
                                     &pass.pass, to_step, &pass.step, to_u32, &pass.model, to_u64,
                                     &pass.rearrangement_duration_ns) ||
        !writer_pass(self, &pass) || !array_open(&avg, "avg", avg_object))
        return NULL;
    if (array_open(&max, "max_", max_object)) {
        result = writer_reduced(self, &pass, &avg, &max);
        array_release(&max);
    }
    array_release(&avg);
    return result;
}

/* Fills in the ubatches' sizes from a sequence of up to four numbers. */
static int parse_ubatches(PyObject *sizes, struct wideep_dbo_stats *stats)
{
    Py_ssize_t count = sizes ? PySequence_Size(sizes) : 0;
    if (count < 0)
        return 0;
    if (count > (Py_ssize_t)WIDEEP_MAX_UBATCHES) {
        PyErr_Format(PyExc_ValueError, "ubatch_tokens: at most %u of them", WIDEEP_MAX_UBATCHES);
        return 0;
    }
    stats->ubatches = (uint32_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *size = PySequence_GetItem(sizes, i);
        int good = size && to_u32(size, &stats->ubatch_tokens[i]);
        Py_XDECREF(size);
        if (!good)
            return 0;
    }
    return 1;
}

static PyObject *writer_record_dbo(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"phase", "outcome", "ubatch_tokens", "pass_", NULL};
    struct writer *self = (struct writer *)object;
    struct wideep_dbo_stats stats = {.pass = NO_PASS};
    const char *phase = "", *outcome = "";
    PyObject *sizes = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$ssOO&", names, &phase, &outcome, &sizes, to_u64, &stats.pass) ||
        !to_index(phase, phases, WIDEEP_PHASES, "phase", &stats.phase) ||
        !to_index(outcome, outcomes, WIDEEP_OUTCOMES, "outcome", &stats.outcome) || !parse_ubatches(sizes, &stats) ||
        !writer_pass(self, &(struct wideep_pass){.pass = stats.pass}))
        return NULL;
    return none_or_error(wideep_record_dbo(self->handle, &stats), self->path);
}

static PyObject *writer_rearrangement_begin(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"model", "mode", NULL};
    struct writer *self = (struct writer *)object;
    uint32_t model = 0, number;
    const char *mode = "sync";
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$O&s", names, to_u32, &model, &mode) ||
        !to_index(mode, modes, WIDEEP_MODES, "mode", &number) || !writer_open(self))
        return NULL;
    return none_or_error(wideep_rearrangement_begin(self->handle, model, (enum wideep_mode)number), self->path);
}

/* The only argument of a method, keyword `model`. */
static int parse_model(PyObject *args, PyObject *keywords, uint32_t *ret)
{
    static char *names[] = {"model", NULL};
    *ret = 0;
    return PyArg_ParseTupleAndKeywords(args, keywords, "|$O&", names, to_u32, ret);
}

static PyObject *writer_rearrangement_end(PyObject *object, PyObject *args, PyObject *keywords)
{
    struct writer *self = (struct writer *)object;
    uint64_t duration_ns = 0;
    uint32_t model;
    if (!parse_model(args, keywords, &model) || !writer_open(self))
        return NULL;
    int error = wideep_rearrangement_end(self->handle, model, &duration_ns);
    return error ? raise_error(error, NULL, self->path) : PyLong_FromUnsignedLongLong(duration_ns);
}

static PyObject *writer_rearrangement_abort(PyObject *object, PyObject *args, PyObject *keywords)
{
    struct writer *self = (struct writer *)object;
    uint32_t model;
    if (!parse_model(args, keywords, &model) || !writer_open(self))
        return NULL;
    return none_or_error(wideep_rearrangement_abort(self->handle, model), self->path);
}

static PyObject *writer_record_tokens(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"prompt", "generation", NULL};
    struct writer *self = (struct writer *)object;
    uint64_t prompt, generation;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&O&", names, to_u64, &prompt, to_u64, &generation) ||
        !writer_open(self))
        return NULL;
    return none_or_error(wideep_record_tokens(self->handle, prompt, generation), self->path);
}

static PyObject *writer_check(PyObject *object, PyObject *unused)
{
    struct writer *self = (struct writer *)object;
    (void)unused;
    creation_lock(); /* before the handle is looked at: another thread may close it meanwhile */
    int open = self->handle != NULL, error = open ? wideep_check(self->handle) : 0;
    creation_unlock();
    return open || writer_open(self) ? none_or_error(error, self->path) : NULL;
}

static PyObject *writer_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    close_writer(&((struct writer *)object)->handle);
    return new_ref(Py_None);
}

static PyObject *writer_get_path(PyObject *object, void *unused)
{
    PyObject *path = ((struct writer *)object)->path;
    (void)unused;
    return new_ref(path ? path : Py_None);
}

static PyObject *writer_get_origin(PyObject *object, void *unused)
{
    static const char *const words[] = {"", "fresh", "takeover", "replaced"}; /* enum wideep_origin */
    (void)unused;
    return PyUnicode_FromString(words[((struct writer *)object)->origin]);
}

static PyObject *writer_get_pid(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((struct writer *)object)->pid);
}

static PyObject *writer_get_closed(PyObject *object, void *unused)
{
    (void)unused;
    return PyBool_FromLong(!((struct writer *)object)->handle);
}

/* METH_KEYWORDS has its own type of function, which PyMethodDef holds as another. */
#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

/* In front of a method's text, for help() and inspect.signature(). */
#define SIGNATURE(name, arguments) name "($self, " arguments ")\n--\n\n"

static PyMethodDef writer_methods[] = {
    {"record_pass", WITH_KEYWORDS(writer_record_pass),
     SIGNATURE(
         "record_pass",
         "loads, physical_to_logical, *, pass_, step=None, model=0, rearrangement_duration_ns=0") "Record the expert loads of one forward pass."},
    {"skip_pass", WITH_KEYWORDS(writer_skip_pass),
     SIGNATURE("skip_pass", "*, pass_, step=None, model=0") "A forward pass whose loads the engine did not record."},
    {"record_eplb", WITH_KEYWORDS(writer_record_eplb),
     SIGNATURE(
         "record_eplb",
         "avg, max_, *, pass_, step=None, model=0, rearrangement_duration_ns=0") "Record figures already reduced over the group, per layer."},
    {"record_dbo", WITH_KEYWORDS(writer_record_dbo),
     SIGNATURE("record_dbo",
               "*, phase, outcome, ubatch_tokens=(), pass_") "Record what became of Dual Batch Overlap in one pass."},
    {"rearrangement_begin", WITH_KEYWORDS(writer_rearrangement_begin),
     SIGNATURE("rearrangement_begin", "*, model=0, mode='sync'") "A rearrangement of the experts begins."},
    {"rearrangement_end", WITH_KEYWORDS(writer_rearrangement_end),
     SIGNATURE("rearrangement_end", "*, model=0") "It is done; returns its nanoseconds."},
    {"rearrangement_abort", WITH_KEYWORDS(writer_rearrangement_abort),
     SIGNATURE("rearrangement_abort", "*, model=0") "It was given up: nothing is counted."},
    {"record_tokens", WITH_KEYWORDS(writer_record_tokens),
     SIGNATURE("record_tokens", "prompt, generation") "Add prompt and generation tokens."},
    {"check", writer_check, METH_NOARGS,
     "check($self)\n--\n\n"
     "Assert about once a second that the segment has its lock and name."},
    {"close", writer_close, METH_NOARGS,
     "close($self)\n--\n\n"
     "Mark the segment closed and keep its file; harmless when repeated."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef writer_properties[] = {
    {"path", writer_get_path, NULL, "Of the file.", NULL},
    {"origin", writer_get_origin, NULL, "How the totals began: fresh, takeover or replaced.", NULL},
    {"pid", writer_get_pid, NULL, "Of the process that opened it, the only one that may use it.", NULL},
    {"closed", writer_get_closed, NULL, "Was close() called?", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot writer_slots[] = {{Py_tp_init, writer_init},
                                     {Py_tp_dealloc, writer_dealloc},
                                     {Py_tp_methods, writer_methods},
                                     {Py_tp_getset, writer_properties},
                                     {Py_tp_doc, "A handle of wideep_shm.h; use wideep.Writer."},
                                     {0, NULL}};

static PyType_Spec writer_spec = {.name = "wideep._binding.Writer",
                                  .basicsize = sizeof(struct writer),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                                  .slots = writer_slots};

/* ---- reading ------------------------------------------------------------------------------------------------ */

/* Appends an item, whose reference it takes. 0 when there is none or no memory. */
static int append(PyObject *list, PyObject *item)
{
    int good = item && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return good;
}

static PyObject *word_list(const uint64_t *words, size_t count)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < count; i++)
        if (!append(list, PyLong_FromUnsignedLongLong(wideep_load(words + i))))
            Py_CLEAR(list);
    return list;
}

/* A copy of a model's part of a token plane: memoryview of uint64 [layers][width]. */
static PyObject *plane_copy(const uint64_t *words, uint32_t layers, uint32_t width)
{
    const size_t count = (size_t)layers * width;
    if (!words || count == 0)
        return new_ref(Py_None);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof *words));
    if (!bytes)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AsString(bytes);
    for (size_t i = 0; i < count; i++) {
        const uint64_t word = wideep_load(words + i);
        memcpy(to + i * sizeof word, &word, sizeof word);
    }
    PyObject *flat = PyMemoryView_FromObject(bytes), *plane = NULL;
    Py_DECREF(bytes);
    if (flat)
        plane = PyObject_CallMethod(flat, "cast", "s(II)", "Q", (unsigned)layers, (unsigned)width);
    Py_XDECREF(flat);
    return plane;
}

static PyObject *read_model(const struct wideep_view *view, uint32_t m)
{
    const struct wideep_identity *id = &view->identity;
    const struct wideep_model *model = &id->models[m];
    const struct wideep_live_model *live = &view->live->models[m];
    const struct wideep_totals_model *totals = &view->totals->models[m];
    /* First: whoever sees a rearrangement sees its mode; the planes hold all passes that are counted. */
    const uint64_t since_ns = wideep_load_acquire(&live->rebalancing_since_ns);
    const uint64_t recorded = wideep_load_acquire(&totals->recorded_passes);
    const uint64_t *ranks = view->rank_tokens ? view->rank_tokens + wideep_plane_offset(id, m, 0) : NULL;
    const uint64_t *experts = view->expert_tokens ? view->expert_tokens + wideep_plane_offset(id, m, 1) : NULL;
    static const char *const recording[] = {"unknown", "yes", "no"}; /* enum wideep_recording */
    const uint64_t recorded_now = wideep_load(&live->recording);
    return Py_BuildValue(
        "{s:N,s:I,s:I,s:I,s:K,s:K,s:K,s:s,s:K,s:s,s:K,s:K,s:K,s:{s:N,s:N},s:N,s:N}", "name",
        PyUnicode_DecodeUTF8(model->name, model->name_length, "replace"), "layers", (unsigned)model->layers,
        "logical_experts", (unsigned)model->logical_experts, "physical_experts", (unsigned)model->physical_experts,
        "passes", wideep_load(&live->passes), "pass_time_ns", wideep_load(&live->pass_time_ns), "rebalancing_since_ns",
        since_ns, "rebalancing_mode", since_ns ? modes[wideep_load(&live->rebalancing_mode) % WIDEEP_MODES] : NULL,
        "since_rearrangement", wideep_load(&live->since_rearrangement), "recording",
        recording[recorded_now <= WIDEEP_RECORDING_NO ? recorded_now : 0], "recorded_time_ns",
        wideep_load(&live->recorded_time_ns), "recorded_passes", recorded, "rearrangement_sum_ns",
        wideep_load(&totals->rearrangement_sum_ns), "rearrangement_buckets", "sync",
        word_list(totals->rearrangement_bucket[WIDEEP_SYNC], WIDEEP_DURATION_BUCKETS), "async",
        word_list(totals->rearrangement_bucket[WIDEEP_ASYNC], WIDEEP_DURATION_BUCKETS), "rank_tokens",
        plane_copy(ranks, model->layers, id->ep_size), "expert_tokens",
        plane_copy(experts, model->layers, model->logical_experts));
}

static PyObject *read_models(const struct wideep_view *view)
{
    PyObject *list = PyList_New(0);
    for (uint32_t m = 0; list && m < view->identity.model_count; m++)
        if (!append(list, read_model(view, m)))
            Py_CLEAR(list);
    return list;
}

static PyObject *eplb_record(const struct wideep_view *view, uint64_t n, uint32_t *tokens)
{
    struct wideep_eplb_record record;
    if (wideep_eplb_read(view, n, &record, tokens) != WIDEEP_READ_OK)
        return new_ref(Py_None);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < view->identity.ep_size; i++)
        if (!append(list, PyLong_FromUnsignedLong(tokens[i])))
            Py_CLEAR(list);
    PyObject *step = record.step == WIDEEP_STEP_UNKNOWN ? new_ref(Py_None) : PyLong_FromUnsignedLong(record.step);
    return Py_BuildValue("{s:K,s:K,s:I,s:I,s:N,s:N,s:N,s:d,s:d,s:d,s:K,s:N}", "pass_", record.pass, "time_ns",
                         record.time_ns, "model", (unsigned)record.model, "layer", (unsigned)record.layer, "step", step,
                         "reduced", PyBool_FromLong(record.flags & WIDEEP_REDUCED), "rebalancing",
                         PyBool_FromLong(record.flags & WIDEEP_REBALANCING), "avg", record.avg_tokens_per_rank, "max_",
                         record.max_tokens_per_rank, "balancedness", record.balancedness, "rearrangement_duration_ns",
                         record.rearrangement_duration_ns, "rank_tokens", list);
}

static PyObject *dbo_record(const struct wideep_view *view, uint64_t n, uint32_t *unused)
{
    struct wideep_dbo_record record;
    (void)unused;
    if (wideep_dbo_read(view, n, &record) != WIDEEP_READ_OK)
        return new_ref(Py_None);
    PyObject *sizes = PyList_New(0);
    for (uint32_t i = 0; sizes && i < record.ubatches; i++)
        if (!append(sizes, PyLong_FromUnsignedLong(record.ubatch_tokens[i])))
            Py_CLEAR(sizes);
    return Py_BuildValue("{s:K,s:K,s:s,s:s,s:N}", "pass_", record.pass, "time_ns", record.time_ns, "phase",
                         phases[record.phase], "outcome", outcomes[record.outcome], "ubatch_tokens", sizes);
}

/* The records that a ring still holds, oldest first; those that were overwritten meanwhile are left out. */
static PyObject *read_ring(const struct wideep_view *view, const struct wideep_ring *ring,
                           PyObject *(*read_one)(const struct wideep_view *, uint64_t, uint32_t *))
{
    uint32_t tokens[WIDEEP_MAX_EP_SIZE];
    PyObject *list = PyList_New(0);
    if (!ring->head)
        return list;
    const uint64_t head = wideep_ring_head(ring);
    for (uint64_t n = wideep_ring_tail(ring, head); list && n < head; n++) {
        PyObject *record = read_one(view, n, tokens);
        if (record == Py_None)
            Py_DECREF(record);
        else if (!append(list, record))
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *read_dbo_passes(const struct wideep_totals *totals)
{
    PyObject *passes = PyDict_New();
    for (unsigned p = 0; passes && p < WIDEEP_PHASES; p++)
        for (unsigned o = 0; passes && o < WIDEEP_OUTCOMES; o++) {
            PyObject *key = Py_BuildValue("(ss)", phases[p], outcomes[o]);
            PyObject *count = PyLong_FromUnsignedLongLong(wideep_load(&totals->dbo_passes[p][o]));
            if (!key || !count || PyDict_SetItem(passes, key, count) != 0)
                Py_CLEAR(passes);
            Py_XDECREF(key);
            Py_XDECREF(count);
        }
    return passes;
}

static PyObject *read_ubatches(const struct wideep_totals *totals)
{
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list && i < WIDEEP_MAX_UBATCHES; i++)
        if (!append(list, word_list(totals->ubatch_bucket[i], WIDEEP_UBATCH_BUCKETS)))
            Py_CLEAR(list);
    return list;
}

static const char *view_state(const struct wideep_view *view)
{
    /* Without a descriptor the segment is this process's own. */
    if (view->fd < 0 || wideep_writer_alive(view->fd) != 0)
        return "live";
    return wideep_load(&view->live->closed_ns) ? "closed" : "dead";
}

/* A dictionary of what wideep.Segment has. */
static PyObject *read_view(const struct wideep_view *view, PyObject *path)
{
    const struct wideep_identity *id = &view->identity;
    const struct wideep_totals *totals = view->totals;
    PyObject *result = Py_BuildValue(
        "{s:O,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:N,s:K,s:K,s:K,s:K,s:I,s:K,s:K}", "path", path, "state",
        view_state(view), "role", roles[id->role], "instance", id->instance, "engine", (unsigned)id->engine, "rank",
        (unsigned)id->rank, "ep_size", (unsigned)id->ep_size, "tp_rank", (unsigned)id->tp_rank, "tp_size",
        (unsigned)id->tp_size, "dp_rank", (unsigned)id->dp_rank, "dp_size", (unsigned)id->dp_size, "loads_replicated",
        PyBool_FromLong(id->flags & WIDEEP_LOADS_REPLICATED), "group", id->group, "instance_id", id->instance_id,
        "lineage", id->lineage, "start_realtime_ns", id->start_realtime_ns, "pid", (unsigned)id->pid, "activity",
        wideep_load(&view->live->activity), "rearrangement_interval", wideep_load(&view->live->rearrangement_interval));
    PyObject *rest =
        Py_BuildValue("{s:K,s:K,s:N,s:N,s:N,s:N,s:N,s:N}", "prompt_tokens", wideep_load(&totals->prompt_tokens),
                      "generation_tokens", wideep_load(&totals->generation_tokens), "dbo_passes",
                      read_dbo_passes(totals), "ubatch_sums", word_list(totals->ubatch_sum, WIDEEP_MAX_UBATCHES),
                      "ubatch_buckets", read_ubatches(totals), "models", read_models(view), "eplb",
                      read_ring(view, &view->eplb, eplb_record), "dbo", read_ring(view, &view->dbo, dbo_record));
    if (!result || !rest || PyDict_Update(result, rest) != 0)
        Py_CLEAR(result);
    Py_XDECREF(rest);
    return result;
}

static PyObject *binding_read(PyObject *module, PyObject *argument)
{
    PyObject *bytes = NULL, *path = NULL, *result = NULL;
    enum wideep_reason reason = WIDEEP_OK;
    struct wideep_view view;
    (void)module;
    if (!PyUnicode_FSConverter(argument, &bytes))
        return NULL;
    const char *name = PyBytes_AsString(bytes);
    path = name ? PyUnicode_DecodeFSDefault(name) : NULL;
    if (path) {
        creation_lock();
        int error = wideep_open(&view, name, &reason);
        creation_unlock();
        if (error == -EBADMSG) {
            raise_error(error, wideep_reason_name(reason), path);
        } else if (error) { /* the header's advice is for writers */
            raise_text(error, error == -EINVAL ? "the file is not a regular one" : strerror(-error), NULL, path);
        } else {
            result = read_view(&view, path);
            creation_lock();
            wideep_view_close(&view);
            creation_unlock();
        }
    }
    Py_XDECREF(path);
    Py_DECREF(bytes);
    return result;
}

/* ---- the module --------------------------------------------------------------------------------------------- */

static PyMethodDef binding_functions[] = {
    {"read", binding_read, METH_O, "A dictionary of what the segment in this file holds."}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef binding_module = {.m_base = PyModuleDef_HEAD_INIT,
                                            .m_name = "wideep._binding",
                                            .m_doc = "wideep_shm.h for Python; use the package wideep.",
                                            .m_size = -1,
                                            .m_methods = binding_functions};

PyMODINIT_FUNC PyInit__binding(void)
{
    PyObject *module = PyModule_Create(&binding_module);
    if (!module)
        return NULL;
    wideep_error = PyErr_NewExceptionWithDoc("wideep.WideepError", "A refusal of wideep_shm.h: errno, and what to do.",
                                             PyExc_OSError, NULL);
    PyObject *writer = PyType_FromSpec(&writer_spec);
    if (!wideep_error || !writer || PyObject_SetAttrString(module, "WideepError", wideep_error) != 0 ||
        PyObject_SetAttrString(module, "Writer", writer) != 0)
        Py_CLEAR(module);
    Py_XDECREF(writer);
    return module;
}
