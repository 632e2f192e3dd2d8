"""`stitch retokenize`: a model that reads another tokenizer, with new rows for the embedding and the head."""
