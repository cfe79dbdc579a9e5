"""One file a data set; each yields items and interactions from the publisher's files, rows in file order."""
