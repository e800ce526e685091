"""Documents of a corpus to read before it is trained on, with what each rule took out of them."""
