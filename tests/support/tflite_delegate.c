/* A TFLite delegate that takes every ADD of two equal shapes, for tests.

   Options: `on_create` = refuse, refuse-silently or crash; `adds` = the number of additions that it takes at most.

   Layouts: tensorflow/lite/core/c/common.h, as of TensorFlow 2.14 and LiteRT 2.3; fields that are
   not used here are blank. */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, FAILED = 1, ADD = 0 };

typedef struct {
  int size;
  int data[];
} IntArray;

typedef struct {
  int type;
  float *data;
  IntArray *dims;
  float scale;
  int32_t zero_point;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  void *delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  int quantization_type;
  void *quantization_params, *sparsity;
  const IntArray *dims_signature;
} Tensor;

typedef struct {
  IntArray *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data;
} Node;

typedef struct Context Context;

typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *registration_external, *async_kernel;
  uint64_t inplace_operator, later[4];
} Registration;

typedef struct {
  void *data;
  int (*prepare)(Context *, void *);
  void *copy_from, *copy_to, *free_buffer;
  int64_t flags;
  void *opaque_builder;
} Delegate;

struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context *, IntArray **);
  Tensor *tensors;
  void *impl, *resize_tensor;
  void (*report_error)(Context *, const char *, ...);
  void *add_tensors;
  int (*get_node)(Context *, int, Node **, Registration **);
  int (*replace)(Context *, Registration, const IntArray *, Delegate *);
};

typedef struct {
  Delegate *delegate;
  IntArray *nodes, *inputs, *outputs;
} Params;

/* The additions of one kernel, each as tensors {a, b, sum}. */
typedef struct {
  int count;
  int (*adds)[3];
} Kernel;

static void *kernel_init(Context *context, const char *buffer, size_t length) {
  const Params *params = (const Params *)buffer;
  (void)length;
  Kernel *kernel = malloc(sizeof *kernel);
  kernel->count = params->nodes->size;
  kernel->adds = malloc(sizeof *kernel->adds * kernel->count);
  for (int i = 0; i < kernel->count; i++) {
    Node *node;
    Registration *registration;
    context->get_node(context, params->nodes->data[i], &node, &registration);
    kernel->adds[i][0] = node->inputs->data[0];
    kernel->adds[i][1] = node->inputs->data[1];
    kernel->adds[i][2] = node->outputs->data[0];
  }
  return kernel;
}

static void kernel_free(Context *context, void *data) {
  (void)context;
  Kernel *kernel = data;
  free(kernel->adds);
  free(kernel);
}

static int kernel_prepare(Context *context, Node *node) {
  (void)context, (void)node;
  return OK;
}

static int kernel_invoke(Context *context, Node *node) {
  const Kernel *kernel = node->user_data;
  /* Tensors between two additions of one kernel get no memory from the interpreter. */
  float **own = calloc(context->tensors_size, sizeof *own);
  for (int i = 0; i < kernel->count; i++) {
    const int *at = kernel->adds[i];
    const Tensor *tensors = context->tensors;
    const float *a = own[at[0]] ? own[at[0]] : tensors[at[0]].data;
    const float *b = own[at[1]] ? own[at[1]] : tensors[at[1]].data;
    bool is_output = false;
    for (int o = 0; o < node->outputs->size; o++) is_output |= node->outputs->data[o] == at[2];
    size_t bytes = 4;
    for (int d = 0; d < tensors[at[2]].dims->size; d++) bytes *= tensors[at[2]].dims->data[d];
    float *sum = is_output ? tensors[at[2]].data : (own[at[2]] = malloc(bytes));
    for (size_t n = 0; n < bytes / 4; n++) sum[n] = a[n] + b[n];
  }
  for (size_t n = 0; n < context->tensors_size; n++) free(own[n]);
  free(own);
  return OK;
}

static int delegate_prepare(Context *context, void *data) {
  Delegate *delegate = data;
  IntArray *plan;
  if (context->get_execution_plan(context, &plan) != OK) return FAILED;
  IntArray *taken = malloc(sizeof *taken + sizeof(int) * plan->size);
  taken->size = 0;
  for (int i = 0; i < plan->size; i++) {
    Node *node;
    Registration *registration;
    context->get_node(context, plan->data[i], &node, &registration);
    if (registration->builtin_code == ADD && taken->size < (intptr_t)delegate->data)
      taken->data[taken->size++] = plan->data[i];
  }
  Registration kernel = {.init = kernel_init,
                         .free = kernel_free,
                         .prepare = kernel_prepare,
                         .invoke = kernel_invoke,
                         .custom_name = "TestDelegate",
                         .version = 1};
  int status = taken->size ? context->replace(context, kernel, taken, delegate) : OK;
  free(taken);
  return status;
}

void *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                    void (*report_error)(const char *)) {
  intptr_t adds = INTPTR_MAX;
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "adds")) {
      adds = atoi(values[i]);
    } else if (!strcmp(values[i], "crash")) {
      abort();
    } else {
      if (!strcmp(values[i], "refuse")) report_error("the accelerator is in use");
      return NULL;
    }
  }
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->data = (void *)adds;
  delegate->prepare = delegate_prepare;
  return delegate;
}

void tflite_plugin_destroy_delegate(void *delegate) { free(delegate); }
