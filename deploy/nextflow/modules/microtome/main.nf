// microtome as processes: one slide, and the summary of all.

// One slide of a manifest: its row as a manifest of its own. Masks go straight to where they are wanted, which all tasks see, and not into
// the task's folder: so a task that is tried again goes on where it was, and nothing is copied. Ids stay out of scripts, because microtome has not
// looked at them yet.
process MICROTOME_SEGMENT {
    tag "${id}"
    label 'microtome'

    // 75: a fault that passes; 137 and 143: killed or stopped. Anything else that is no result is for a person.
    errorStrategy { task.exitStatus in [75, 137, 143] ? (task.attempt <= 3 ? 'retry' : 'ignore') : 'finish' }
    maxRetries 3

    input:
    tuple val(id), val(row)
    val model
    val out
    val flags

    output:
    val id

    script:
    // Four fifths: the rest is room for the slide's file pages.
    def memory = task.memory ? "--memory ${task.memory.toMega().intdiv(5) * 4}MiB" : ''
    """
    cat > row.jsonl <<'ROW'
    ${row}
    ROW
    code=0
    microtome batch row.jsonl -m '${model}' -o '${out}' --shard 0/1 --threads ${task.cpus} ${memory} ${flags} || code=\$?
    case \$code in
    0 | 3 | 4 | 5 | 6) ;;
    *) exit \$code ;;
    esac
    """
}

// One summary of all slides, when all have ended.
process MICROTOME_REPORT {
    label 'microtome'

    input:
    val ids
    val out

    script:
    """
    microtome report '${out}'
    """
}
