// An archive of slides, one task a slide:
//
//   nextflow run deploy/nextflow --manifest slides.csv --model models/nuclei --out masks --flags '--model-mpp 0.5'

nextflow.enable.dsl = 2

include { MICROTOME_SEGMENT; MICROTOME_REPORT } from './modules/microtome/main.nf'

params.manifest = null
params.model = null
params.out = 'masks'
params.flags = ''

workflow {
    if (!params.manifest || !params.model) {
        error 'say --manifest slides.csv and --model MODEL'
    }
    def manifest = file(params.manifest, checkIfExists: true)
    def model = file(params.model, checkIfExists: true).toAbsolutePath().toString()
    def out = file(params.out).toAbsolutePath().toString()

    // Rows as JSON, with paths of slides that hold wherever a task runs: slides are read where they lie, and not copied.
    slides = Channel
        .fromPath(params.manifest)
        .splitCsv(header: true, quote: '"', sep: manifest.name.endsWith('.tsv') ? '\t' : ',')
        .map { row ->
            def cells = row.findAll { name, value -> value }
            cells = cells.collectEntries { name, value ->
                def isPath = name in ['slide', 'roi'] && !value.contains('://')
                [name, isPath ? manifest.parent.resolve(value).toAbsolutePath().toString() : value]
            }
            tuple(row.id, groovy.json.JsonOutput.toJson(cells))
        }

    ended = MICROTOME_SEGMENT(slides, model, out, params.flags)
    MICROTOME_REPORT(ended.collect(), out)
}
