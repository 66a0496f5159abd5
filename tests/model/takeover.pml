/* Creation, takeover and re-creation of a segment, as in shm-abi/wideep_shm.h: starters that race for one name, any of
 * which may be killed between any two system calls and started again, and somebody who deletes the file.
 *
 * Each step is one system call, or what a process does with memory that is its own. Inode numbers are used again as soon
 * as nothing leads to a file. Locks are the kernel's process-associated ones: closing a descriptor or dying drops them.
 * An orderly close of a segment is to the others what a death is. Not modelled: a writer that loses its lock by closing
 * another descriptor of its file, and two handles of one identity in one process.
 *
 * PROPERTIES
 *
 *   whole      what has the name is complete, and held by its writer from the instant it has the name
 *   one        a name never goes to a second writer while the first lives, unless somebody deleted the first one's file
 *   totals     what gets a name has all that was ever counted under its lineage; a name changes its lineage only
 *              after a deletion
 *   no wait    nobody waits for ever for another (no invalid end state)
 *   no livelock  retries end: there is no cycle in the state space at all, since waiting a millisecond for a claim is
 *              modelled as waiting for its end (pan -l)
 *
 * Between the last look at the name and rename() no system call can close the gap: a file that was deleted and made anew
 * just then is replaced. Its writer learns of it from wideep_check(). `let_in` marks those, and them alone.
 *
 * Defined by the checker: STARTERS, DEATHS, DELETES, COUNTS for each writer; and a mutant, which must violate one of the
 * properties.
 */

#define NOBODY 0

/* Errors of a step: start over; a live writer has the name. */
#define AGAIN 1
#define BUSY  2

#define INODES (2 * STARTERS + 2)

/* The directory and its files; index 0 is no file. */
byte name;                   /* the file that has the segment's name */
byte alive[INODES + 1];      /* who has byte 0 locked */
byte claim[INODES + 1];      /* who has byte 1 locked */
byte opened[INODES + 1];     /* by whom, as bits */
byte lineage[INODES + 1];    /* what the file says */
byte total[INODES + 1];      /* … and has counted */
bool temporary[INODES + 1];  /* has its temporary name */
bool filled[INODES + 1];     /* is complete */
bool deleted[INODES + 1];    /* had the name when the deleter took it away */
bool published[INODES + 1];  /* had the name once */

/* For the properties alone. */
byte lineages, deaths, deletes;
byte counted[DELETES + 2]; /* under each lineage, by all its writers */
bool dead[STARTERS];
bool looked[STARTERS];     /* stands between its look at the name and rename() */
bool let_in[STARTERS];     /* … and somebody deleted the name there */

#define ME  (_pid + 1)
#define BIT (1 << _pid)

/* A file that nothing leads to is gone, and its number free. */
inline forget(file)
{
    if
    :: file != 0 && file != name && !temporary[file] && opened[file] == 0 ->
        alive[file] = NOBODY;
        claim[file] = NOBODY;
        lineage[file] = 0;
        total[file] = 0;
        filled[file] = false;
        deleted[file] = false;
        published[file] = false
    :: else
    fi
}

inline close_as(who, file)
{
    opened[file] = opened[file] & ~(1 << (who - 1));
    alive[file] = (alive[file] == who -> NOBODY : alive[file]);
    claim[file] = (claim[file] == who -> NOBODY : claim[file]);
    forget(file)
}

inline close(file)
{
    d_step {
        close_as(ME, file);
        file = 0
    }
}

/* wideep_i_claim() but for its first call, open(). On an error `old` is closed. */
inline claim_old()
{
#ifndef MUTANT_KEEPS_CLAIM
    atomic {
        if
        :: alive[old] != NOBODY -> /* wideep_writer_alive() */
            error = BUSY;
            close(old)
        :: else
        fi
    };
#endif
#ifndef MUTANT_NO_CLAIM
    atomic {
        if
        :: error == 0 && claim[old] == NOBODY -> claim[old] = ME /* wideep_i_lock(fd, 1) */
        :: error == 0 && claim[old] != NOBODY ->
            error = AGAIN;
            waits = old;
            close(old)
        :: else
        fi
    };
    if
    :: waits != 0 -> /* -EINPROGRESS */
        atomic {
            claim[waits] == NOBODY || name != waits;
            waits = 0
        }
    :: else
    fi;
#endif
    atomic { /* wideep_writer_alive() again: this model's dead stay dead; stat() */
        if
        :: error == 0 && alive[old] != NOBODY ->
            error = BUSY;
#ifdef MUTANT_KEEPS_CLAIM
            old = 0
#else
            close(old)
#endif
#ifndef MUTANT_NO_RECHECK
        :: error == 0 && alive[old] == NOBODY && name != old ->
            error = AGAIN;
            close(old)
#endif
        :: else
        fi
    }
}

/* wideep_i_draft_begin() and what fills the draft. Nobody else reads a file before it has the segment's name. */
inline draft(predecessor)
{
    d_step {
        new = 1;
        do
        :: new <= INODES && (new == name || temporary[new] || opened[new] != 0) -> new++
        :: else -> break
        od;
        assert(new <= INODES); /* the model's own bound */
        temporary[new] = true;
        opened[new] = BIT
    };
    d_step {
#ifndef MUTANT_NAME_BEFORE_LOCK
        alive[new] = ME; /* wideep_i_lock(fd, 0) */
#endif
        lineage[new] = lineage[predecessor];
        total[new] = total[predecessor];
#ifndef MUTANT_NAME_BEFORE_CONTENT
        filled[new] = true
#endif
    }
}

/* What holds whenever `new` has just got the name that `displaced` had. */
inline check_publication()
{
    published[new] = true;
    if
    :: lineage[new] == 0 ->
        lineages++;
        lineage[new] = lineages
    :: else
    fi;
    assert(filled[new] && alive[new] == ME); /* whole */
    assert(total[new] == counted[lineage[new]]); /* totals */
    assert(displaced == 0 || let_in[_pid] || lineage[displaced] == lineage[new] || deletes > 0); /* totals */
    other = 1;
    do
    :: other > INODES -> break
    :: else ->
        assert(other == new || alive[other] == NOBODY || !published[other] || deleted[other] || let_in[_pid]); /* one */
        other++
    od;
    other = 0;
    if
    :: displaced != 0 && displaced != old -> /* in the gap: so may be who had looked at that one */
        deleted[displaced] = true;
        do
        :: other < STARTERS ->
            let_in[other] = let_in[other] || looked[other];
            other++
        :: else -> break
        od;
        other = 0
    :: else
    fi;
    forget(displaced);
    displaced = 0;
    looked[_pid] = false;
    let_in[_pid] = false
}

/* wideep_i_draft_discard() */
inline discard()
{
    d_step {
        temporary[new] = false;
        looked[_pid] = false;
        let_in[_pid] = false;
        close_as(ME, new);
        new = 0
    }
}

/* wideep_i_take_name() without a claim, and unlink() of the temporary */
inline publish_free()
{
    atomic {
        if
#ifdef MUTANT_RENAME_FRESH
        :: temporary[new] ->
            d_step {
                displaced = name; /* rename() */
                name = new;
                temporary[new] = false;
                check_publication()
            }
#else
        :: name == 0 && temporary[new] ->
            d_step {
                name = new; /* link() */
                check_publication()
            }
#endif
        :: else -> /* -EEXIST; -ENOENT: swept */
            error = AGAIN;
            discard()
        fi
    };
    if
    :: error == 0 -> temporary[new] = false /* unlink() */
    :: else
    fi
}

/* wideep_i_take_name() in the place of a claimed file */
inline publish_claimed()
{
#ifdef MUTANT_CLAIM_ENDS_EARLY
    d_step {
        waits = old;
        close_as(ME, old);
        waits = 0
    };
#endif
#if !defined(MUTANT_NO_LAST_LOOK) && !defined(MUTANT_NO_RECHECK)
    atomic {
        if
        :: name == old -> looked[_pid] = true /* lstat() */
        :: else ->
            error = AGAIN;
            discard()
        fi
    };
#endif
    atomic {
        if
        :: error == 0 && temporary[new] ->
            d_step {
                displaced = name; /* rename() */
                temporary[new] = false;
                name = new;
                check_publication()
            }
        :: error == 0 && !temporary[new] -> /* -ENOENT: swept */
            error = AGAIN;
            discard()
        :: else
        fi
    };
    close(old)
}

/* wideep_i_sweep(): one pass over the directory, removing temporaries that nobody holds. A second one could sweep the
 * same starter's next temporary, and so on. */
inline sweep()
{
    do
    :: d_step {
           victim = swept + 1;
           do
           :: victim <= INODES && !(temporary[victim] && alive[victim] == NOBODY && victim != own) -> victim++
           :: else -> break
           od;
           if
           :: victim <= INODES -> opened[victim] = opened[victim] | BIT
           :: else ->
               victim = 0;
               swept = 0
           fi
       };
       if
       :: victim == 0 -> break
       :: else ->
           d_step {
               temporary[victim] = false;
               close_as(ME, victim);
#ifndef MUTANT_SWEEPS_AGAIN
               swept = victim;
#endif
               victim = 0
           }
       fi
    od
}

active [STARTERS] proctype starter()
{
    byte old, new, own; /* files: claimed, under construction, written */
    byte counts, error;
    byte displaced, other, victim, swept, waits;

start:
    {
        counts = 0;
create: /* wideep_i_create_once(), which wideep_i_create_loop() repeats */
        error = 0;
        d_step {
            old = name; /* open() of wideep_i_claim() */
            if
            :: old != 0 -> opened[old] = opened[old] | BIT
            :: else
            fi
        };
        if
        :: old == 0 -> /* wideep_i_build() */
            draft(0);
            publish_free()
        :: else ->
            claim_old();
            if
            :: error == 0 -> /* wideep_i_succeed(): wideep_i_read_whole(), then wideep_i_build() */
                draft(old);
                publish_claimed()
            :: else
            fi
        fi;
        if
        :: error == AGAIN -> goto create
        :: error == BUSY -> goto end_done /* -EBUSY of wideep_create() */
        :: else
        fi;
        d_step {
            own = new;
            new = 0
        };
#ifdef MUTANT_NAME_BEFORE_LOCK
        alive[own] = ME;
#endif
        sweep();

end_write: /* a writer with nothing to do waits: its file may be deleted yet */
        do
        :: counts < COUNTS -> /* any record function */
            d_step {
                counts++;
                total[own]++;
                counted[lineage[own]]++
            }
        :: name != own -> break
        od;

        error = 0; /* wideep_check() */
        d_step {
            old = name; /* lstat(), and open() of wideep_i_claim() */
            if
            :: old != 0 && old != own -> opened[old] = opened[old] | BIT
            :: else
            fi
        };
        if
        :: old == own ->
            old = 0;
            goto end_write
        :: old == 0 -> /* wideep_i_recreate() */
            draft(own);
            publish_free()
        :: old != 0 && old != own -> /* wideep_i_reclaim() */
            claim_old();
            if
            :: error == 0 ->
                draft(own);
                publish_claimed()
            :: else
            fi
        fi;
        if
        :: error == AGAIN -> goto end_write
        :: error == BUSY -> goto end_done /* -ESTALE */
        :: else
        fi;
        close(own);
        d_step {
            own = new;
            new = 0
        };
        goto end_write;

end_done:
        false
    } unless {
        atomic {
            dead[_pid] -> /* the next process of this rank begins */
            old = 0;
            new = 0;
            own = 0;
            error = 0;
            other = 0;
            victim = 0;
            swept = 0;
            waits = 0;
            dead[_pid] = false
        }
    };
    goto start
}

/* Kills anybody at any time, as often as DEATHS: the kernel closes what the process had open. */
active proctype killer()
{
    byte who, file;

end:
    do
    :: deaths < DEATHS ->
        atomic {
            select(who : 0 .. STARTERS - 1);
            deaths++;
            d_step {
                file = 1;
                do
                :: file <= INODES ->
                    if
                    :: opened[file] & (1 << who) -> close_as(who + 1, file)
                    :: else
                    fi;
                    file++
                :: else -> break
                od;
                looked[who] = false;
                let_in[who] = false;
                dead[who] = true;
                who = 0;
                file = 0
            }
        }
    od
}

/* rm of the segment, whoever writes it */
active proctype deleter()
{
    byte file, who;

end:
    do
    :: deletes < DELETES && name != 0 ->
        d_step {
            deletes++;
            file = name;
            name = 0;
            deleted[file] = true;
            forget(file);
            who = 0;
            do
            :: who < STARTERS ->
                let_in[who] = let_in[who] || looked[who];
                who++
            :: else -> break
            od;
            who = 0;
            file = 0
        }
    od
}
