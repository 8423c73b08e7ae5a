# COORDINATOR'S NOTE: another helper is writing this claim and its test (to save time). If you were told to write it: don't; finish your other claims and report.
