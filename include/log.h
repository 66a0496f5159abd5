/*
 * log: one structured line per event on stderr, as logfmt or JSON.
 *
 *     log_info("segment attached", "file", name, "model", model, NULL);
 *
 * A message, then pairs of key and text, then NULL. Keys are plain words of ours; texts may hold anything: they are
 * quoted, and bytes that are not UTF-8 replaced. A line is at most LOG_LINE_MAX bytes and says where it was cut. It is
 * written with one write(); a reader that is gone or a full disk loses the line and nothing else. Any thread, no
 * allocation.
 */
#ifndef WIDEEP_LOG_H
#define WIDEEP_LOG_H

#define LOG_LINE_MAX 4096

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_LOGFMT, LOG_JSON };

/* Before other threads start. Default: info, logfmt. */
void log_setup(enum log_level level, enum log_format format);

void log_write(enum log_level level, const char *message, ...) __attribute__((sentinel));

#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

#endif
