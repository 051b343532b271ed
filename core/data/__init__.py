"""From files to rows of token ids: readers, formats, the model's chat template, preparation."""
