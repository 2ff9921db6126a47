import Foundation

/// A folder whose content only this user, or root, can change, held open.
///
/// Names in a folder that others can write to may be links, pipes, endless devices or files of
/// somebody else. So nothing is followed or waited for, and what counts is what was opened: it is
/// looked at after opening.
final class PrivateFolder {
  /// There is no such file; another process may just have taken it away.
  struct Missing: Error {}

  private static let writableByOthers: mode_t = 0o022
  private let handle: Int32
  private let name: String
  private let user: uid_t

  /// Nil when there is none; throws when it is a link, or others own it or can write to it.
  convenience init?(_ path: URL, user: uid_t = geteuid()) throws {
    try self.init(handle: open(path.path, Self.flags), name: path.path, user: user)
  }

  private static let flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC

  private init?(handle: Int32, name: String, user: uid_t) throws {
    guard handle >= 0 else {
      if errno == ENOENT { return nil }
      throw ShaderStoreError(description: "\(name): \(String(cString: strerror(errno)))")
    }
    (self.handle, self.name, self.user) = (handle, name, user)
    try check(handle, S_IFDIR, name)
  }

  deinit { close(handle) }

  /// A folder in this one.
  func folder(_ name: String) throws -> PrivateFolder? {
    try PrivateFolder(
      handle: openat(handle, name, Self.flags), name: "\(self.name)/\(name)", user: user)
  }

  /// The content of a regular file in this folder, of at most `most` bytes.
  func read(_ name: String, most: Int) throws -> Data {
    // Without O_NONBLOCK, opening a pipe waits for a writer.
    let opened = openat(handle, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    guard opened >= 0 else {
      if errno == ENOENT { throw Missing() }
      throw ShaderStoreError(description: "\(name): \(String(cString: strerror(errno)))")
    }
    let file = FileHandle(fileDescriptor: opened, closeOnDealloc: true)
    let size = try check(opened, S_IFREG, name)
    let content = size > most ? nil : try file.read(upToCount: most + 1) ?? Data()
    guard let content, content.count <= most else {
      throw ShaderStoreError(description: "\(name) is larger than \(most) bytes")
    }
    return content
  }

  /// Throw unless what is open is of this kind and nobody else's to change; return its size.
  @discardableResult
  private func check(_ opened: Int32, _ kind: mode_t, _ name: String) throws -> Int {
    var facts = stat()
    guard fstat(opened, &facts) == 0 else {
      throw ShaderStoreError(description: "\(name): \(String(cString: strerror(errno)))")
    }
    guard facts.st_mode & S_IFMT == kind else {
      throw ShaderStoreError(description: "\(name) is neither a folder nor a regular file")
    }
    guard facts.st_uid == user || facts.st_uid == 0 else {
      throw ShaderStoreError(description: "\(name) belongs to another user")
    }
    guard facts.st_mode & Self.writableByOthers == 0 else {
      throw ShaderStoreError(description: "\(name) can be written to by others: chmod go-w")
    }
    return Int(facts.st_size)
  }
}
