/* The serial side of the firmware: the MLPerf Tiny monitor's protocol plus extensions that a host must ask for.
 *
 * ASCII; a command ends with '%', an answer is lines that end with CR LF, and every command, also one that is not known,
 * is answered by "m-ready" last. `profile` says in its "m-cactus-[...]" line that the extensions are there. */
#ifndef CE_PROTOCOL_H
#define CE_PROTOCOL_H

/* Says hello. */
void ce_protocol_begin(void);

/* Takes in one received character, and executes the command that it completes. */
void ce_protocol_feed(char c);

/* "e-[fault <exception> <cause>]", for a processor that cannot go on. */
void ce_protocol_fault(unsigned exception, unsigned cause);

#endif
