"""A trained transformer in another form: fewer key heads, recurrent state, consolidated memory, explicit n-grams."""
