#include "mfa_ffi.h"
#include <string.h>

/* What a caller of the real library asks for and never gets past. */
void mfa_destroy_context(void* context) { (void)context; }
int mfa_create_buffer(void* context, size_t size, void** buffer) {
  return context && size && buffer ? 5 : 1;
}
int mfa_buffer_from_ptr(void* context, void* data, size_t size, void** buffer) {
  return context && data && size && buffer ? 5 : 1;
}
int mfa_buffer_from_ptr_with_strides(void* context, void* data, size_t size, const int64_t* shape,
                                     const int64_t* strides, uint32_t ndim, void** buffer) {
  return context && data && size && shape && strides && ndim && buffer ? 5 : 1;
}
void* mfa_buffer_contents(void* buffer) { return buffer; }
void mfa_destroy_buffer(void* buffer) { (void)buffer; }
int mfa_attention_forward(void) { return 5; }
const char* mfa_error_string(int error) { return strdup(error ? "an error" : "Success"); }
bool mfa_is_device_supported(void) { return true; }
void mfa_get_version(int* major, int* minor, int* patch) { *major = 1, *minor = *patch = 0; }
double mfa_get_gpu_latency(void* context) { return context ? 0.001 : 0; }
