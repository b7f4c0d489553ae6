// DynamoDB on a free loopback port: prints the port, and ends when its standard input does.
const dynalite = require('dynalite')

const server = dynalite({ createTableMs: 50, deleteTableMs: 50, updateTableMs: 50 })
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume().on('end', () => process.exit(0))
