/* What each command of the protocol does: one function per command, which answers in full except for "m-ready".
 * With CE_LIVE defined there is `certify` as well, and a second arena.
 * The model's input, its last output and the clock live behind them. Numbers come as they were sent: each is checked here. */
#ifndef CE_COMMANDS_H
#define CE_COMMANDS_H

#include <stdint.h>

/* Starts the clock of `timestamp` and `infer`. Before anything else. */
void ce_command_start(void);

void ce_command_name(void);
void ce_command_profile(void);
void ce_command_timestamp(void);
void ce_command_help(void);

void ce_command_db_load(int32_t bytes);
void ce_command_db_print(void);
/* hex: digits without spaces, ends with zero. */
void ce_command_db_data(const char *hex);

void ce_command_infer(int32_t count, int32_t warmup);
void ce_command_results(void);
void ce_command_raw(void);
void ce_command_crc(void);
void ce_command_ticks(void);
void ce_command_tap(int32_t op);
void ce_command_mem(void);

#ifdef CE_LIVE
/* Runs the loaded input and bounds its decision `radius` codes around it, within the codes least to most. */
void ce_command_certify(int32_t radius, int32_t least, int32_t most);
#endif

#endif
