"""What goes over the wire: requests, answers and errors in the form that OpenAI's clients read."""
