/* NCCL among the processes of one machine, over Unix sockets: what ranks send each other arrives, and sums are sums.

   Collectives of up to NOCUDA_SEND_BYTES a rank are made, in the calling thread; larger ones do nothing. With
   NOCUDA_ALONE=1 there are no other ranks to wait for: all-gathers give this rank's data as everybody's, and what is
   left stays as it is. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, SYSTEM_ERROR = 2, REMOTE_ERROR = 6 };
enum { SUM, PROD, MAX, MIN, AVG };
enum { F16 = 6, F32 = 7, F64 = 8, BF16 = 9 };

typedef struct { char name[128]; } Id;
typedef struct { int ranks, rank, splits, *peers; char name[128]; } Comm; /* peers: a socket each, -1 of this rank */

static size_t width(int type) {
  static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return bytes[type];
}
static int alone(void) { return getenv("NOCUDA_ALONE") != NULL; }
static int is_small(size_t bytes) {
  const char *most = getenv("NOCUDA_SEND_BYTES");
  return bytes <= (most ? strtoul(most, 0, 10) : 64ul << 20);
}

static int put(int fd, const char *data, size_t n) {
  for (ssize_t done; n; data += done, n -= done)
    if ((done = send(fd, data, n, MSG_NOSIGNAL)) <= 0) return REMOTE_ERROR;
  return OK;
}
static int get(int fd, char *data, size_t n) {
  for (ssize_t done; n; data += done, n -= done)
    if ((done = recv(fd, data, n, 0)) <= 0) return REMOTE_ERROR;
  return OK;
}

static struct sockaddr_un address(const char *name, int rank, socklen_t *length) {
  struct sockaddr_un a = {.sun_family = AF_UNIX}; /* a first zero byte: a name without a file */
  snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "%.80s-%d", name, rank);
  *length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(a.sun_path + 1);
  return a;
}

/* Every rank listens, and calls all before it. */
static int connect_all(Comm **made, int ranks, int rank, const char *name) {
  Comm *c = *made = calloc(1, sizeof(Comm));
  c->ranks = ranks, c->rank = rank;
  snprintf(c->name, sizeof c->name, "%s", name);
  if (alone() || ranks == 1) return OK;
  c->peers = malloc(ranks * sizeof(int));
  socklen_t length;
  struct sockaddr_un own = address(name, rank, &length);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, (void *)&own, length) || listen(listener, ranks)) return SYSTEM_ERROR;
  c->peers[rank] = -1;
  for (int other = 0; other < rank; other++) {
    struct sockaddr_un there = address(name, other, &length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int tries = 0; connect(fd, (void *)&there, length); tries++) {
      if (tries == 60000) return SYSTEM_ERROR;
      usleep(10000);
    }
    if (put(fd, (char *)&rank, sizeof rank)) return REMOTE_ERROR;
    c->peers[other] = fd;
  }
  for (int n = rank + 1; n < ranks; n++) {
    int other, fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
    if (fd < 0 || get(fd, (char *)&other, sizeof other)) return SYSTEM_ERROR;
    c->peers[other] = fd;
  }
  close(listener);
  return OK;
}

int ncclGetVersion(int *v) { *v = 22602; return OK; }
const char *ncclGetErrorString(int e) { return e == REMOTE_ERROR ? "a process of no-op NCCL has gone" : "no-op NCCL"; }
const char *ncclGetLastError(Comm *c) { return "no-op NCCL"; }
int ncclGetUniqueId(Id *id) {
  static int made = 0;
  memset(id, 0, sizeof *id);
  snprintf(id->name, sizeof id->name, "nocuda-%d-%ld-%d", getpid(), (long)time(0), made++);
  return OK;
}
int ncclCommInitRank(Comm **c, int n, Id id, int r) { return connect_all(c, n, r, id.name); }
int ncclCommInitRankConfig(Comm **c, int n, Id id, int r, void *config) { return connect_all(c, n, r, id.name); }
int ncclCommInitRankScalable(Comm **c, int n, int r, int ids, Id *id, void *config) {
  return connect_all(c, n, r, id->name);
}
int ncclCommCount(Comm *c, int *n) { *n = c->ranks; return OK; }
int ncclCommUserRank(Comm *c, int *r) { *r = c->rank; return OK; }
int ncclCommGetAsyncError(Comm *c, int *e) { *e = OK; return OK; }
int ncclCommDestroy(Comm *c) {
  for (int i = 0; c->peers && i < c->ranks; i++)
    if (i != c->rank) shutdown(c->peers[i], SHUT_RDWR), close(c->peers[i]);
  free(c->peers);
  c->peers = 0;
  return OK;
}
int ncclCommAbort(Comm *c) { return ncclCommDestroy(c); }

/* With each other rank in turn; the lower of two sends first, so that no two wait for each other. */
static int swap(Comm *c, int other, const char *out, size_t n_out, char *in, size_t n_in) {
  int fd = c->peers[other], first = c->rank < other, failed = OK;
  if (first) failed = put(fd, out, n_out);
  if (!failed) failed = get(fd, in, n_in);
  if (!failed && !first) failed = put(fd, out, n_out);
  return failed;
}
/* Everybody's bytes, in the order of ranks. */
static int gather(Comm *c, const void *mine, size_t n, char *all) {
  memmove(all + c->rank * n, mine, n);
  for (int other = 0; other < c->ranks; other++) {
    if (other == c->rank) continue;
    if (!c->peers) memmove(all + other * n, mine, n);
    else if (swap(c, other, mine, n, all + other * n, n)) return REMOTE_ERROR;
  }
  return OK;
}

static double as_double(const char *p, int type) {
  uint32_t bits;
  float f;
  switch (type) {
    case F64: return *(double *)p;
    case F32: return *(float *)p;
    case F16: return *(_Float16 *)p;
    default: bits = (uint32_t) * (uint16_t *)p << 16; memcpy(&f, &bits, 4); return f;
  }
}
static void from_double(char *p, int type, double value) {
  float f = value;
  uint32_t bits;
  switch (type) {
    case F64: *(double *)p = value; break;
    case F32: *(float *)p = f; break;
    case F16: *(_Float16 *)p = f; break;
    default: memcpy(&bits, &f, 4); *(uint16_t *)p = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
}
static int64_t as_integer(const char *p, int type) {
  switch (type) {
    case 0: return *(int8_t *)p;
    case 2: return *(int32_t *)p;
    case 4: case 5: return *(int64_t *)p;
    case 3: return *(uint32_t *)p;
    default: return *(uint8_t *)p;
  }
}
#define FOLD(into, value, op) \
  into = op == PROD ? into * (value) : op == MAX ? ((value) > into ? (value) : into) \
       : op == MIN ? ((value) < into ? (value) : into) : into + (value)

/* `count` values of each rank, `apart` bytes from one rank's to the next one's. */
static void reduce(char *to, const char *all, size_t apart, size_t count, int type, int op, int ranks) {
  size_t w = width(type);
  for (size_t i = 0; i < count; i++) {
    const char *p = all + i * w;
    if (type >= F16 && type <= BF16) {
      double sum = as_double(p, type);
      for (int r = 1; r < ranks; r++) { double v = as_double(p + r * apart, type); FOLD(sum, v, op); }
      from_double(to + i * w, type, op >= AVG ? sum / ranks : sum);
    } else {
      uint64_t bits;
      int64_t sum = as_integer(p, type);
      for (int r = 1; r < ranks; r++) {
        int64_t v = as_integer(p + r * apart, type);
        if (op == SUM) sum = (int64_t)((uint64_t)sum + (uint64_t)v); else FOLD(sum, v, op);
      }
      bits = (uint64_t)sum;
      memcpy(to + i * w, &bits, w); /* little-endian */
    }
  }
}

int ncclAllGather(const void *s, void *r, size_t n, int type, Comm *c, void *stream) {
  size_t bytes = n * width(type);
  return is_small(bytes) ? gather(c, s, bytes, r) : OK;
}
static int reduced(const void *s, size_t n, int type, int op, Comm *c, char *to, size_t from, size_t count) {
  size_t bytes = n * width(type);
  if (!is_small(bytes)) return OK;
  if (!c->peers) {
    if (to) memmove(to, (char *)s + from * width(type), count * width(type));
    return OK;
  }
  char *all = malloc(bytes * c->ranks + 1);
  int failed = gather(c, s, bytes, all);
  if (!failed && to) reduce(to, all + from * width(type), bytes, count, type, op, c->ranks);
  free(all);
  return failed;
}
int ncclAllReduce(const void *s, void *r, size_t n, int type, int op, Comm *c, void *stream) {
  return reduced(s, n, type, op, c, r, 0, n);
}
int ncclReduceScatter(const void *s, void *r, size_t n, int type, int op, Comm *c, void *stream) {
  return reduced(s, n * c->ranks, type, op, c, r, n * c->rank, n);
}
int ncclReduce(const void *s, void *r, size_t n, int type, int op, int root, Comm *c, void *stream) {
  return reduced(s, n, type, op, c, c->rank == root ? r : 0, 0, n);
}
int ncclBroadcast(const void *s, void *r, size_t n, int type, int root, Comm *c, void *stream) {
  size_t bytes = n * width(type);
  if (!is_small(bytes)) return OK;
  if (c->rank == root || !c->peers) {
    if (s != r) memmove(r, s, bytes);
    for (int other = 0; c->peers && other < c->ranks; other++)
      if (other != root && put(c->peers[other], s, bytes)) return REMOTE_ERROR;
    return OK;
  }
  return get(c->peers[root], r, bytes);
}
int ncclBcast(void *b, size_t n, int type, int root, Comm *c, void *stream) {
  return ncclBroadcast(b, b, n, type, root, c, stream);
}

/* Messages of a group are kept until its end: two ranks may both send first. */
typedef struct { Comm *c; int peer, sends; void *data; size_t bytes; } Message;
static __thread Message messages[4096];
static __thread int n_messages = 0, depth = 0;

static int deliver(void) {
  int failed = OK, n = n_messages;
  n_messages = 0;
  for (int turn = 0; turn < 2; turn++) /* the lower rank of two sends first */
    for (int i = 0; i < n && !failed; i++) {
      Message *m = &messages[i];
      if (m->peer == m->c->rank || !m->c->peers || (m->sends == (m->c->rank < m->peer)) == turn) continue;
      failed = m->sends ? put(m->c->peers[m->peer], m->data, m->bytes) : get(m->c->peers[m->peer], m->data, m->bytes);
    }
  for (int i = 0; i < n; i++) /* to oneself */
    for (int j = 0; j < n; j++)
      if (messages[i].sends && !messages[j].sends && messages[i].c == messages[j].c &&
          messages[i].peer == messages[i].c->rank && messages[j].peer == messages[j].c->rank)
        memmove(messages[j].data, messages[i].data, messages[i].bytes);
  return failed;
}
static int message(Comm *c, int peer, int sends, void *data, size_t bytes) {
  if (!is_small(bytes)) return OK;
  if (n_messages == 4096) return SYSTEM_ERROR;
  messages[n_messages++] = (Message){c, peer, sends, data, bytes};
  return depth ? OK : deliver();
}
int ncclSend(const void *s, size_t n, int type, int peer, Comm *c, void *stream) {
  return message(c, peer, 1, (void *)s, n * width(type));
}
int ncclRecv(void *r, size_t n, int type, int peer, Comm *c, void *stream) {
  return message(c, peer, 0, r, n * width(type));
}
int ncclGroupStart(void) { depth++; return OK; }
int ncclGroupEnd(void) { return --depth ? OK : deliver(); }

int ncclCommSplit(Comm *c, int color, int key, Comm **made, void *config) {
  int mine[2] = {color, key}, *all = malloc(c->ranks * sizeof mine), ranks = 0, rank = 0;
  char name[128];
  if (gather(c, mine, sizeof mine, (char *)all)) return REMOTE_ERROR;
  for (int r = 0; r < c->ranks; r++) {
    if (all[2 * r] != color) continue;
    ranks++;
    rank += all[2 * r + 1] < key || (all[2 * r + 1] == key && r < c->rank);
  }
  free(all);
  snprintf(name, sizeof name, "%.60s-%d-%d", c->name, c->splits++, color);
  *made = 0;
  return color < 0 ? OK : connect_all(made, alone() ? c->ranks : ranks, alone() ? c->rank : rank, name);
}
