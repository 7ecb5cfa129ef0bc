/* A stand-in for NVIDIA's management library: what the agent loads as libnvidia-ml.so.1 in tests.
 *
 * It reads the file "control" beside itself at every call, a word a line:
 *
 *   absent          the kernel module is not loaded
 *   mismatch        library and kernel module differ
 *   hang            calls that ask a GPU never return
 *   crash           they end the process
 *   lost N          GPU N has fallen off the bus
 *   missing N       GPU N is not listed any more
 *   xid N X         GPU N reports Xid X, once
 *   ecc N E         GPU N has E uncorrected errors
 *   hot N C         GPU N has C degrees
 *   process N P M   process P holds M MiB of GPU N
 *   old             neither memory nor ECC are supported
 *
 * Numbers, structures and versions are those of nvml.h. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15,
       LIB_RM_VERSION_MISMATCH = 18 };
enum { GPUS = 2, GPU_MIB = 24576 };

typedef struct { int index; unsigned long long told; } device_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { device_t *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } event_t;
typedef struct { device_t *device; } set_t;

static device_t devices[GPUS];

/* The values of the first line that begins with these; their count, or -1 when there is none. `skip` lines before. */
static int find(const char *word, int index, int skip, unsigned long long *a, unsigned long long *b)
{
    Dl_info here;
    char path[4096], line[256], name[64];
    dladdr((void *)find, &here);
    snprintf(path, sizeof path, "%s", here.dli_fname);
    char *slash = strrchr(path, '/');
    if (!slash) return -1;
    snprintf(slash + 1, sizeof path - (slash + 1 - path), "control");
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    int found = -1;
    while (found < 0 && fgets(line, sizeof line, file)) {
        unsigned long long n = 0, x = 0, y = 0;
        int count = sscanf(line, "%63s %llu %llu %llu", name, &n, &x, &y);
        if (count < 1 || strcmp(name, word) || (index >= 0 && (count < 2 || n != (unsigned)index))) continue;
        if (skip-- > 0) continue;
        if (a) *a = x;
        if (b) *b = y;
        found = count;
    }
    fclose(file);
    return found;
}

static int is(const char *word) { return find(word, -1, 0, 0, 0) >= 0; }

static int ask(device_t *device)
{
    while (is("hang")) pause();
    if (is("crash")) abort();
    return find("lost", device->index, 0, 0, 0) >= 0 ? GPU_IS_LOST : OK;
}

static int driver(void)
{
    if (is("absent")) return DRIVER_NOT_LOADED;
    return is("mismatch") ? LIB_RM_VERSION_MISMATCH : OK;
}

int nvmlInit_v2(void)
{
    for (int i = 0; i < GPUS; i++) devices[i].index = i;
    return driver();
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { (void)error; return "stand-in"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    snprintf(text, size, "550.54.15");
    return driver();
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = 0;
    for (int i = 0; i < GPUS; i++) *count += find("missing", i, 0, 0, 0) < 0;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device)
{
    *device = &devices[index % GPUS];
    return ask(*device);
}
int nvmlDeviceGetUUID(device_t *device, char *text, unsigned size)
{
    snprintf(text, size, "GPU-%d0000000-0000-4000-8000-000000000000", device->index);
    return ask(device);
}
int nvmlDeviceGetName(device_t *device, char *text, unsigned size)
{
    snprintf(text, size, "NVIDIA Stand-In");
    return ask(device);
}
static unsigned long long used_mib(device_t *device)
{
    unsigned long long sum = 512, pid, mib;
    for (int i = 0; find("process", device->index, i, &pid, &mib) >= 0; i++) sum += mib;
    return sum;
}
int nvmlDeviceGetMemoryInfo_v2(device_t *device, memory_v2_t *memory)
{
    if (is("old")) return NOT_SUPPORTED;
    memory->total = (unsigned long long)GPU_MIB << 20;
    memory->reserved = 512ull << 20;
    memory->used = (used_mib(device) - 512) << 20;
    memory->free = memory->total - (used_mib(device) << 20);
    return ask(device);
}
int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *rates)
{
    rates->gpu = 40 + device->index;
    rates->memory = 10;
    return ask(device);
}
int nvmlDeviceGetTemperature(device_t *device, int sensor, unsigned *celsius)
{
    unsigned long long hot = 50;
    (void)sensor;
    find("hot", device->index, 0, &hot, 0);
    *celsius = hot;
    return ask(device);
}
int nvmlDeviceGetTemperatureThreshold(device_t *device, int type, unsigned *celsius)
{
    *celsius = type == 0 ? 95 : 90;
    return ask(device);
}
int nvmlDeviceGetPowerUsage(device_t *device, unsigned *mw) { *mw = 61200; return ask(device); }
int nvmlDeviceGetEnforcedPowerLimit(device_t *device, unsigned *mw) { *mw = 72000; return ask(device); }
int nvmlDeviceGetTotalEccErrors(device_t *device, int type, int counter, unsigned long long *errors)
{
    (void)counter;
    *errors = 0;
    if (is("old")) return NOT_SUPPORTED;
    if (type == 1) find("ecc", device->index, 0, errors, 0); /* uncorrected */
    return ask(device);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, unsigned long long *reasons)
{
    *reasons = 1 | 4; /* idle, and a software power cap */
    return ask(device);
}
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned *count, process_t *processes)
{
    unsigned long long pid, mib;
    unsigned room = *count, found = 0;
    for (; find("process", device->index, (int)found, &pid, &mib) >= 0; found++)
        if (found < room) processes[found] = (process_t){.pid = pid, .used = mib << 20};
    *count = found;
    int answer = ask(device);
    return answer ? answer : found > room ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, unsigned *count, process_t *processes)
{
    (void)processes;
    *count = 0;
    return ask(device);
}
int nvmlEventSetCreate(set_t **set)
{
    *set = calloc(1, sizeof **set);
    return OK;
}
int nvmlEventSetFree(set_t *set) { free(set); return OK; }
int nvmlDeviceRegisterEvents(device_t *device, unsigned long long types, set_t *set)
{
    (void)types;
    set->device = device;
    return ask(device);
}
int nvmlEventSetWait_v2(set_t *set, event_t *event, unsigned timeout_ms)
{
    unsigned long long xid;
    (void)timeout_ms;
    if (find("xid", set->device->index, 0, &xid, 0) < 0 || xid == set->device->told) return TIMEOUT;
    set->device->told = xid;
    *event = (event_t){.device = set->device, .type = 8, .data = xid};
    return OK;
}
